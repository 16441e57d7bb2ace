"""Attention by torch's kernels for a GPU: which takes what, and what it is asked. Plain operations stand for the kernels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from medsft.core.engine.nn import cuda_attention
from medsft.core.engine.nn.attention import PackedSequences, attend
from medsft.core.engine.nn.cuda_attention import Spans, attend_on_gpu
from medsft.core.engine.nn.key_ranges import KeyRanges, _attend_on_gpu, attend_ranges

aten = torch.ops.aten
LENGTHS = (5, 1, 40, 17)
AMPERE, TURING = (8, 0), (7, 5)


class PlainKernels(TorchDispatchMode):
    """Computes what the four operations are documented to compute, and notes torch's deterministic mode at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        kernels: dict[str, Any] = {
            "_flash_attention_forward": self.flash,
            "_flash_attention_backward": self.flash_backward,
            "_efficient_attention_forward": self.efficient,
            "_efficient_attention_backward": self.efficient_backward,
        }
        kernel = kernels.get(name)
        if kernel is None:
            return func(*args, **kwargs)
        self.calls.append((name, torch.are_deterministic_algorithms_enabled()))
        assert not (torch.are_deterministic_algorithms_enabled() and torch._C._get_deterministic_fill_uninitialized_memory())
        return kernel(*args, **kwargs)

    def flash(self, q, k, v, at, of, most, most_keys, dropout, causal, debug, *, window_size_left=None, window_size_right=None):
        assert (dropout, debug) == (0.0, False)
        assert (most, most_keys) == (max(at.diff()), max(of.diff()))
        p = probabilities(q, k, flash_mask(at, of, causal, window_size_left, window_size_right))
        out = torch.einsum("hqk,khd->qhd", p, repeated(v, q))
        return out, q.new_zeros(q.shape[1], len(q)), torch.zeros(2), torch.zeros(0), torch.zeros(0)

    def flash_backward(self, grad, q, k, v, out, _, at, of, most, most_keys, dropout, causal, seed, offset, **window):
        assert (dropout, len(seed), len(offset)) == (0.0, 2, 0)
        seen = flash_mask(at, of, causal, window.get("window_size_left"), window.get("window_size_right"))
        grads = gradients(grad, q, repeated(k, q), repeated(v, q), out, seen)
        return grads[0], *(each.unflatten(1, (k.shape[1], -1)).sum(2) for each in grads[1:])

    def efficient(self, q, k, v, bias, at, of, most, most_keys, dropout, mask, for_backward, *, window_size=None):
        assert (bias, dropout, for_backward) == (None, 0.0, True)
        assert q.shape[0] == 1
        assert q.shape[2] == k.shape[2] == v.shape[2]
        p = probabilities(q[0], k[0], efficient_mask(at, of, mask, window_size))
        out = torch.einsum("hqk,khd->qhd", p, v[0])[None]
        return out, torch.zeros(len(at) - 1, q.shape[2], most), torch.zeros(2), torch.zeros(0), most, most_keys

    def efficient_backward(
        self, grad, q, k, v, bias, out, at, of, most, most_keys, _, dropout, seed, offset, mask, bias_grad, *, window_size=None
    ):
        assert (bias, dropout, bias_grad, len(seed), len(offset)) == (None, 0.0, False, 2, 0)
        grads = gradients(grad[0], q[0], k[0], v[0], out[0], efficient_mask(at, of, mask, window_size))
        return *(each[None] for each in grads), torch.zeros(0)


def flash_mask(at, of, causal, left, right):
    """Of flash_attn: the last query sees the last key; from `left` keys before its own place to `right` behind it."""
    place, text = places(at, of)
    right = 0 if causal else right
    return text & ((place <= right) if right is not None else True) & ((place >= -left) if left is not None else True)


def efficient_mask(at, of, mask, window):
    """Of xformers: 1 has the first query see the first key, 2 the last query the last; `window` keys at most."""
    place, text = places(at, of, from_end=mask == 2)
    assert mask in (1, 2)
    return text & (place <= 0) & ((place > -window) if window is not None else True)


def places(at, of, *, from_end=True):
    """How far each key lies behind the place of each query, [T, S], and whether both are of one text."""
    behind = torch.zeros(int(at[-1]), int(of[-1]), dtype=torch.int64)
    text = torch.zeros_like(behind, dtype=torch.bool)
    for begin, end, first, last in zip(at[:-1], at[1:], of[:-1], of[1:], strict=True):
        shift = int((last - first) - (end - begin)) if from_end else 0
        behind[begin:end, first:last] = torch.arange(int(last - first)) - torch.arange(int(end - begin))[:, None] - shift
        text[begin:end, first:last] = True
    return behind, text


def repeated(x, q):
    return x.repeat_interleave(q.shape[1] // x.shape[1], dim=1)


def probabilities(q, k, seen):
    scores = torch.einsum("qhd,khd->hqk", q, repeated(k, q)) / q.shape[2] ** 0.5
    return scores.masked_fill(~seen, -torch.inf).softmax(-1)


def gradients(grad, q, k, v, out, seen):
    p = probabilities(q, k, seen)
    of_scores = p * (torch.einsum("qhd,khd->hqk", grad, v) - (grad * out).sum(-1).T[:, :, None]) / q.shape[2] ** 0.5
    products = (("hqk,khd->qhd", of_scores, k), ("hqk,qhd->khd", of_scores, q), ("hqk,qhd->khd", p, grad))
    return tuple(torch.einsum(*product) for product in products)


def inputs(queries, keys, *, heads=6, kv_heads=2, size=16):
    generator = torch.Generator().manual_seed(0)
    shapes = [(queries, heads), (keys, kv_heads), (keys, kv_heads), (queries, heads)]
    q, k, v, weight = (torch.randn(*shape, size, generator=generator) for shape in shapes)
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), weight


@pytest.fixture(params=["flash", "efficient"])
def kernel(request, monkeypatch):
    """Either kernel, with fp32 tensors, so that results may be compared closely."""
    monkeypatch.setattr(cuda_attention, "compute_capability", lambda _: AMPERE)
    monkeypatch.setattr(cuda_attention, "_SIXTEEN_BIT", (torch.float32,) if request.param == "flash" else ())
    return request.param


@pytest.mark.parametrize("window", [None, 1, 6, 40, 41])
@pytest.mark.parametrize("kv_heads", [2, 6])
def test_equals_attention_on_a_cpu(kernel, window, kv_heads):
    *qkv, weight = inputs(sum(LENGTHS), sum(LENGTHS), kv_heads=kv_heads)
    sequences = PackedSequences.of(LENGTHS)
    spans = Spans(sequences.cu_seqlens, sequences.cu_seqlens, (max(LENGTHS), max(LENGTHS)))
    with PlainKernels() as kernels:
        ours = attend_on_gpu(*qkv, spans, window)
        got = torch.autograd.grad((ours * weight).sum(), qkv)
    expected = attend(*qkv, sequences, window)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got, torch.autograd.grad((expected * weight).sum(), qkv), atol=2e-5, rtol=1e-5)
    assert kernels.calls == [(f"_{kernel}_attention_forward", False), (f"_{kernel}_attention_backward", True)]


@pytest.mark.parametrize("mode", [(False, False, True), (True, True, False)])
def test_the_deterministic_mode_is_as_before_after_a_backward_pass(kernel, mode):
    """The mode of the whole process, whether it warns, whether new memory is filled."""
    *qkv, _ = inputs(8, 8)
    offsets = torch.tensor([0, 8], dtype=torch.int32)
    enabled, warns, fills = mode
    try:
        torch.use_deterministic_algorithms(enabled, warn_only=warns)
        torch._C._set_deterministic_fill_uninitialized_memory(fills)
        with PlainKernels():
            attend_on_gpu(*qkv, Spans(offsets, offsets, (8, 8)), None).sum().backward()
        assert torch.are_deterministic_algorithms_enabled() == enabled
        assert torch.is_deterministic_algorithms_warn_only_enabled() == warns
        assert torch._C._get_deterministic_fill_uninitialized_memory() == fills
    finally:
        torch.use_deterministic_algorithms(False)
        torch._C._set_deterministic_fill_uninitialized_memory(True)


@pytest.mark.parametrize("window", [None, 3, 30])
def test_keys_that_were_computed_before(kernel, window):
    lengths, ranges = (1, 3, 17), [((0, 64), (70, 75)), ((0, 64), (75, 78)), ((80, 90), (100, 109))]
    q, k, v, _ = inputs(sum(lengths), 120)
    where = KeyRanges.of(lengths, ranges)
    rows = torch.from_numpy(np.concatenate([np.arange(*piece) for own in ranges for piece in own]))
    with PlainKernels() as kernels:
        ours = _attend_on_gpu(q, k, v, replace(where, rows=rows), window)
    torch.testing.assert_close(ours, attend_ranges(q.detach(), k.detach(), v.detach(), where, window), atol=1e-5, rtol=1e-5)
    assert [name for name, _ in kernels.calls] == [f"_{kernel}_attention_forward"]


@pytest.mark.parametrize(
    ("dtype", "size", "capability", "taken_by"),
    [
        (torch.bfloat16, 64, AMPERE, "_FlashAttention"),
        (torch.float16, 256, (12, 0), "_FlashAttention"),
        (torch.bfloat16, 264, AMPERE, "_EfficientAttention"),
        (torch.bfloat16, 20, AMPERE, "_EfficientAttention"),
        (torch.float32, 64, AMPERE, "_EfficientAttention"),
        (torch.float32, 64, (7, 0), "_EfficientAttention"),
        (torch.float16, 64, TURING, "_EfficientAttention"),
        (torch.bfloat16, 64, TURING, None),  # no kernel: torch computes in fp32, document by document
        (torch.float64, 64, AMPERE, None),
    ],
)
def test_which_kernel_takes_what(dtype, size, capability, taken_by, monkeypatch):
    monkeypatch.setattr(cuda_attention, "compute_capability", lambda _: capability)
    asked = []
    for name in ("_FlashAttention", "_EfficientAttention"):
        monkeypatch.setattr(getattr(cuda_attention, name), "apply", lambda *_, name=name: asked.append(name))
    offsets = torch.tensor([0, 4], dtype=torch.int32)
    q = torch.zeros(4, 2, size, dtype=dtype)
    assert attend_on_gpu(q, q, q, Spans(offsets, offsets, (4, 4)), None) is None
    assert asked == ([taken_by] if taken_by else [])


def test_amd_has_no_window_in_fp32(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "7.0")
    offsets = torch.tensor([0, 8], dtype=torch.int32)
    q, k, v, _ = inputs(8, 8)
    assert attend_on_gpu(q, k, v, Spans(offsets, offsets, (8, 8)), 3) is None
    assert attend_on_gpu(q, k, v, Spans(offsets, offsets.clone(), (8, 8)), None) is None
