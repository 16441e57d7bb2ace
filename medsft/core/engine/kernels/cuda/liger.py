"""SwiGLU and rotation by the Triton kernels of `liger-kernel`, each with its gradient, where they work on this machine.

Triton compiles for the GPU at hand with the C compiler at hand, so the library's presence says little. Before the first use on
a device each kernel computes something small and is compared with torch's operations; where one fails or is wrong none is used.
Not run on a GPU yet; `tests/engine/kernels/test_gpu_kernels.py` runs them in Triton's interpreter.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_LARGEST_ROW = 65536
"""Numbers in a row that one block of Triton holds, Liger's limit."""


@dataclass(frozen=True, slots=True)
class Liger:
    """Whether the library's kernels are used on a device."""

    version: str
    """Empty where the library is not installed."""
    problem: str = ""
    """Why the kernels of an installed library are not used."""

    @property
    def works(self) -> bool:
        """Whether they are."""
        return bool(self.version) and not self.problem


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up, rounded once. The backward writes the gradients of `gate` and `up` into their memory."""
    return _function("swiglu", "LigerSiLUMulFunction").apply(gate, up)


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Return `q` [T, H, d] and `k` [T, K, d] rotated in their own memory, as their gradients are in the backward.

    `cos` and `sin` are [T, 1, d / 2], contiguous.
    """
    # Liger has a batch, [1, H, T, d] in our memory order, and tables of d numbers a row if d is not named.
    q, k = (heads.transpose(0, 1)[None] for heads in (q, k))
    tables = cos.transpose(0, 1), sin.transpose(0, 1)
    q, k, *_ = _function("rope", "LigerRopeFunction").apply(q, k, *tables, None, 1, q.shape[-1])
    return q[0].transpose(0, 1), k[0].transpose(0, 1)


@cache
def _function(module: str, name: str) -> Any:
    """Return an autograd function of the library. Its import takes a second, so it waits until one is needed."""
    return getattr(importlib.import_module(f"liger_kernel.ops.{module}"), name)


def fits(row: int) -> bool:
    """Return whether a row of so many numbers is not too long for a kernel."""
    return row <= _LARGEST_ROW


@cache
def on_device(device: torch.device) -> Liger:
    """Return whether the kernels work on `device`; they are tried at the first call."""
    try:
        version = importlib.metadata.version("liger-kernel")
    except importlib.metadata.PackageNotFoundError:
        return Liger("")
    try:
        with torch.inference_mode(False), torch.enable_grad():
            wrong = [
                f"{name} in {str(dtype).removeprefix('torch.')}"
                for name, is_right in _TRIALS.items()
                for dtype in _TRIED
                if not is_right(device, dtype)
            ]
    except Exception as error:
        return Liger(version, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
    return Liger(version, f"wrong results of {' and '.join(wrong)}" if wrong else "")


def _swiglu_is_right(device: torch.device, dtype: torch.dtype) -> bool:
    tensors = [_numbers((5, 24), device, dtype, first=first) for first in (-3.0, 1.0)]
    wide = [tensor.detach().double().requires_grad_() for tensor in tensors]
    exact = F.silu(wide[0]) * wide[1]
    out = swiglu(*(tensor.clone() for tensor in tensors))  # copies, whose memory the backward takes
    found, expected = torch.autograd.grad(out.sum(), tensors), torch.autograd.grad(exact.sum(), wide)
    return _close([out, *found], [exact, *expected])


def _rotation_is_right(device: torch.device, dtype: torch.dtype) -> bool:
    q, k = (_numbers((5, heads, 8), device, dtype, first=1.0) for heads in (3, 1))
    angles = torch.arange(5.0, device=device)[:, None, None] * _numbers((1, 1, 4), device, torch.float32, first=0.1).detach()
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    out = rotate(q.clone(), k.clone(), cos, sin)
    found = torch.autograd.grad([heads.sum() for heads in out], [q, k])
    exact, gradients = [], []
    for heads in (q, k):
        first, second = heads.detach().double().chunk(2, -1)
        exact.append(torch.cat((first * cos - second * sin, second * cos + first * sin), -1))
        gradients.append(torch.cat((cos + sin, cos - sin), -1).expand_as(heads))
    return _close([*out, *found], [*exact, *gradients])


def _numbers(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype, *, first: float) -> Tensor:
    """Return numbers between `first` and `first` + 2 that need no random generator, which a run goes on with."""
    count = torch.Size(shape).numel()
    steps = torch.arange(count, device=device).mul(37).remainder(count)
    return (first + steps * (2 / count)).to(dtype).view(shape).requires_grad_()


def _close(found: list[Tensor], exact: list[Tensor]) -> bool:
    tolerance = 1e-5 if found[0].dtype == torch.float32 else 3e-2
    pairs = zip(found, exact, strict=True)
    return all(torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance) for a, b in pairs)


_TRIALS = {"SwiGLU": _swiglu_is_right, "rotation": _rotation_is_right}
_TRIED = (torch.float32, torch.bfloat16)
"""The formats in which they are tried."""
