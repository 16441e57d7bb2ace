"""The loss, the fused functions of a layer and the norm of gradients on the device, each beside its formula in fp64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.gpu.part import Findings, Setup
from medsft.core.devices import find_devices
from medsft.core.engine.nn.fused import rms_norm, rotate, swiglu
from medsft.core.engine.nn.loss import weighted_nll
from medsft.core.engine.parallel.master_weights import MasterWeights
from medsft.core.engine.train.optim import squared_norm

_LIMITS = {torch.bfloat16: 1e-2, torch.float32: 1e-5}
"""Of ||found - exact|| / ||exact||. bf16 keeps 8 bits: an operation that rounds once is 2e-3 off."""
_EPS = 1e-5
_TOKENS, _VOCABULARY, _PADDING = 300, 1000, 3
_CHUNKS = (None, 37)
"""Rows of the loss that are projected at a time; None: what it takes by itself, here all."""
_TABLE = {False: (50_000, 512), True: (500, 64)}
"""By whether sizes are those of tests, a table of tokens: added up in fp32, its squares lose digits."""

Function = Callable[..., Tensor]


def measure(setup: Setup, found: Findings) -> None:
    """See the module."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    for dtype in (torch.bfloat16, torch.float32) if find_devices().bf16 or setup.tiny else (torch.float32,):
        name = str(dtype).removeprefix("torch.")
        for what, function, exact, inputs in _functions(dtype):
            with found.attempt(f"{name} {what}", right=True):
                for part, error in _errors(function, exact, inputs, device).items():
                    found.at_most(f"{name} {what}, {part}", error, _LIMITS[dtype])
        for chunk in _CHUNKS:
            with found.attempt(f"{name} loss, chunks of {chunk or 'all'}", right=True):
                for part, error in _loss_errors(dtype, chunk, device).items():
                    found.at_most(f"{name} loss, chunks of {chunk or 'all'}, {part}", error, _LIMITS[dtype])
    with found.attempt("norm of gradients", right=True):
        found.at_most("norm of gradients", _norm_error(_TABLE[setup.tiny], device), 1e-6)


def _functions(dtype: torch.dtype) -> list[tuple[str, Function, Function, Sequence[Tensor]]]:
    """Return (name, the function, its formula, inputs of which the first two get gradients) for the steps of a layer."""
    hidden, heads, size = 576, 9, 64
    angles = torch.arange(_TOKENS)[:, None, None] * 10_000.0 ** (-torch.arange(size // 2) / (size // 2))
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)

    def exact_norm(x: Tensor, weight: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + _EPS).rsqrt() * weight

    def exact_rotation(x: Tensor, _: Tensor) -> Tensor:
        (first, second), c, s = x.chunk(2, dim=-1), cos.double(), sin.double()
        return torch.cat((first * c - second * s, second * c + first * s), dim=-1)

    def rotation(x: Tensor, _: Tensor) -> Tensor:
        return rotate(x, cos.to(x.device), sin.to(x.device))

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape).to(dtype)

    return [
        ("RMSNorm", lambda x, weight: rms_norm(x, weight, _EPS), exact_norm, (random(_TOKENS, hidden), random(hidden))),
        ("SwiGLU", swiglu, lambda gate, up: F.silu(gate) * up, (random(_TOKENS, hidden), random(_TOKENS, hidden))),
        ("rotation", rotation, exact_rotation, (random(_TOKENS, heads, size), random(1))),
    ]


def _errors(function: Function, exact: Function, inputs: Sequence[Tensor], device: torch.device) -> dict[str, float]:
    """Return the relative errors of the output and of each input's gradient."""
    own = [x.to(device).requires_grad_() for x in inputs]
    wide = [x.double().requires_grad_() for x in inputs]
    out, wanted = function(*own), exact(*wide)
    grad = torch.randn(out.shape).to(out.dtype)
    found = torch.autograd.grad(out, own, grad.to(device), allow_unused=True)
    gradients = torch.autograd.grad(wanted, wide, grad.double(), allow_unused=True)
    pairs = [("output", out, wanted), *((f"gradient {n}", a, b) for n, (a, b) in enumerate(zip(found, gradients, strict=True)))]
    return {name: _error(a, b) for name, a, b in pairs if a is not None and b is not None}


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found.detach().cpu().double() - exact.detach()).norm() / exact.detach().norm())


def _loss_errors(dtype: torch.dtype, chunk: int | None, device: torch.device) -> dict[str, float]:
    hidden, head = torch.randn(_TOKENS, 64).to(dtype), (0.1 * torch.randn(_VOCABULARY, 64)).to(dtype)
    labels = torch.randint(0, _VOCABULARY - _PADDING, (_TOKENS,))
    weights = (torch.rand(_TOKENS) > 0.6).float()
    own = [x.to(device).requires_grad_() for x in (hidden, head)]
    wide = [x.double().requires_grad_() for x in (hidden, head)]
    rows = _VOCABULARY - _PADDING
    out = weighted_nll(own[0], own[1], labels.to(device), weights.to(device), vocab_size=rows, chunk_rows=chunk)
    nll = F.cross_entropy(wide[0] @ wide[1][:rows].T, labels, reduction="none")
    exact = (nll * weights).sum()
    found, wanted = torch.autograd.grad(out.loss, own), torch.autograd.grad(exact, wide)
    return {
        "value": _error(out.loss, exact),
        "hidden states": _error(found[0], wanted[0]),
        "output projection": _error(found[1], wanted[1]),
        "of each token": _error(out.nll, nll * weights),
    }


def _norm_error(size: tuple[int, int], device: torch.device) -> float:
    masters: dict[str, nn.Parameter] = {}
    exact = 0.0
    for name, shape in (("table", size), ("matrix", (64, 64)), ("norm", (64,))):
        gradient = torch.randn(shape)
        masters[name] = nn.Parameter(torch.empty(shape, device=device))
        masters[name].grad = gradient.to(device)
        exact += float(gradient.double().square().sum())
    mesh: Any = SimpleNamespace(device=device, dp_rank=0, tp_rank=0)
    found = squared_norm(MasterWeights(masters, {}), mesh, tied_copy=False)
    return abs(float(found) / exact - 1)
