"""Attention on the device beside fp64: values and gradients, whether its backward is deterministic, what that costs, memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.gpu.part import Findings, Setup
from medsft.core.devices import find_devices
from medsft.core.engine.commands.doctor import seconds_per_call
from medsft.core.engine.nn.attention import PackedSequences, attend

_LENGTHS = ((1,), (5, 1, 40, 1, 17), (300, 129, 128), (520, 3), (1,) * 64)
_WINDOWS = (None, 1, 50, 200)
_HEADS = ((9, 3, 64), (8, 2, 128), (4, 4, 80))
"""Query heads, key heads, size of a head."""
_LIMITS = {torch.bfloat16: 2e-2, torch.float32: 1e-4}
"""Of ||found - exact|| / ||exact||."""
_REPEATS = 5
_LAYER = 32, 8, 128
"""A layer of Llama 3 8B."""
_DOCUMENTS, _LENGTH = 4, 2048
_TINY_LENGTH = 96


@dataclass(frozen=True, slots=True)
class _Inputs:
    q: Tensor
    k: Tensor
    v: Tensor
    grad: Tensor

    @classmethod
    def random(cls, tokens: int, heads: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> _Inputs:
        counts = heads[0], heads[1], heads[1], heads[0]
        q, k, v, grad = (torch.randn(tokens, count, heads[2], device=device, dtype=dtype) for count in counts)
        return cls(q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), grad)

    def gradients(self, sequences: PackedSequences, window: int | None = None) -> tuple[Tensor, ...]:
        """Return the output and the gradients of q, k and v."""
        out = attend(self.q, self.k, self.v, sequences, window)
        return out.detach(), *torch.autograd.grad(out, (self.q, self.k, self.v), self.grad)

    def exact(self, lengths: tuple[int, ...], window: int | None) -> tuple[Tensor, ...]:
        """Return the same in fp64 by the definition, with all scores at once."""
        q, k, v = (x.detach().double().requires_grad_() for x in (self.q, self.k, self.v))
        group, tokens = q.shape[1] // k.shape[1], len(q)
        numbers = torch.arange(len(lengths), device=q.device).repeat_interleave(torch.tensor(lengths, device=q.device))
        places = torch.arange(tokens, device=q.device)
        behind = places[:, None] - places
        seen = (numbers[:, None] == numbers) & (behind >= 0) & (behind < (window or tokens))
        scores = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(group, 1)) / q.shape[2] ** 0.5
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        out = torch.einsum("hqk,khd->qhd", weights, v.repeat_interleave(group, 1))
        return out.detach(), *torch.autograd.grad(out, (q, k, v), self.grad.double())


def measure(setup: Setup, found: Findings) -> None:
    """See the module."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    dtypes = (torch.bfloat16, torch.float32) if find_devices().bf16 or setup.tiny else (torch.float32,)
    for dtype in dtypes:
        name = str(dtype).removeprefix("torch.")
        with found.attempt(f"attention in {name}", right=True):
            _compare(found, name, dtype, device, tiny=setup.tiny)
        with found.attempt(f"repeated backward in {name}", right=True):
            _repeat(found, name, dtype, device, tiny=setup.tiny)
        if device.type == "cuda":
            with found.attempt(f"memory of attention in {name}", right=True):
                _memory(found, name, dtype, device)
    with found.attempt("time of attention", right=False):
        found.figure("ms", _times(dtypes[0], device, tiny=setup.tiny))


def _cases(*, tiny: bool) -> Iterator[tuple[tuple[int, ...], int | None, tuple[int, int, int]]]:
    for lengths in _LENGTHS[:2] if tiny else _LENGTHS:
        for window in _WINDOWS[::2] if tiny else _WINDOWS:
            for heads in _HEADS:
                yield lengths, window, heads


def _compare(found: Findings, name: str, dtype: torch.dtype, device: torch.device, *, tiny: bool) -> None:
    """Check the largest relative error of output and gradients over all cases.

    A gradient that is exactly zero, as that of a query of the only token of its document, is held against the others.
    """
    worst: dict[str, tuple[float, str]] = {}
    count = 0
    for lengths, window, heads in _cases(tiny=tiny):
        count += 1
        inputs = _Inputs.random(sum(lengths), heads, dtype, device)
        pairs = zip(
            ("out", "dq", "dk", "dv"),
            inputs.gradients(PackedSequences.of(lengths, device), window),
            inputs.exact(lengths, window),
            strict=True,
        )
        least = 0.05 * float(inputs.grad.double().norm())
        for what, one, exact in pairs:
            error = float((one.double() - exact).norm()) / (float(exact.norm()) + least)
            if what not in worst or not error <= worst[what][0]:  # one that is not a number is the worst
                worst[what] = error, f"lengths {lengths[:5]}, window {window}, heads {heads}"
    for what, (error, _) in worst.items():
        found.at_most(f"{name} attention, {what}, {count} cases beside fp64", error, _LIMITS[dtype])
    found.figure(f"worst_{name}", worst)


def _layer(dtype: torch.dtype, device: torch.device, *, tiny: bool) -> tuple[_Inputs, PackedSequences]:
    lengths = (_TINY_LENGTH if tiny else _LENGTH,) * _DOCUMENTS
    return _Inputs.random(sum(lengths), _LAYER, dtype, device), PackedSequences.of(lengths, device)


def _repeat(found: Findings, name: str, dtype: torch.dtype, device: torch.device, *, tiny: bool) -> None:
    """A resume is bit for bit only where the same inputs give the same gradients."""
    inputs, sequences = _layer(dtype, device, tiny=tiny)
    first, *others = (inputs.gradients(sequences) for _ in range(_REPEATS))
    same = sum(all(torch.equal(a, b) for a, b in zip(first, other, strict=True)) for other in others)
    found.holds(f"{name} attention gives the same bits each time", same == len(others), f"{same} of {len(others)} repeats")


def _memory(found: Findings, name: str, dtype: torch.dtype, device: torch.device) -> None:
    """A long document must not need all its scores at once, which are 4.3 GB in fp32 for 32 heads and 5,793 tokens."""
    tokens = 5793
    inputs, sequences = _Inputs.random(tokens, _LAYER, dtype, device), PackedSequences.of((tokens,), device)
    scores = _LAYER[0] * tokens**2 * inputs.q.element_size()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    inputs.gradients(sequences)
    found.at_most(f"{name} attention, memory of all scores", (torch.cuda.max_memory_allocated(device) - before) / scores, 0.5)


def _times(dtype: torch.dtype, device: torch.device, *, tiny: bool) -> dict[str, float]:
    """Return the milliseconds of forward and backward of a layer, and of torch's own kernel on the same documents.

    That one is measured as it is, and with a deterministic backward: what the bits cost.
    """
    inputs, sequences = _layer(dtype, device, tiny=tiny)
    heads, kv_heads, size = _LAYER
    shape = _DOCUMENTS, -1
    pairs = (inputs.q, heads), (inputs.k, kv_heads), (inputs.v, kv_heads)
    batched = [x.detach().view(*shape, count, size).transpose(1, 2).requires_grad_() for x, count in pairs]
    grad = inputs.grad.view(*shape, heads, size).transpose(1, 2)

    def torchs() -> object:
        out = F.scaled_dot_product_attention(batched[0], batched[1], batched[2], is_causal=True, enable_gqa=True)
        return torch.autograd.grad(out, batched, grad)

    times = {"medsft": seconds_per_call(lambda: inputs.gradients(sequences), device)}
    flash = [SDPBackend.FLASH_ATTENTION] if dtype == torch.bfloat16 else [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    fills: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), fills.fill_uninitialized_memory
    with sdpa_kernel(flash):  # what medsft calls, and not another one that is faster
        times["torch"] = seconds_per_call(torchs, device)
        torch.use_deterministic_algorithms(True)
        fills.fill_uninitialized_memory = False
        try:
            times["torch, deterministic"] = seconds_per_call(torchs, device)
        finally:
            torch.use_deterministic_algorithms(before[0])
            fills.fill_uninitialized_memory = before[1]
    return {name: round(1e3 * seconds, 3) for name, seconds in times.items()}
