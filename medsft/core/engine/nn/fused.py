"""RMSNorm, SwiGLU and rotation, each fused into one autograd function.

As plain tensor operations, each would make autograd save several intermediate results per token, partly in fp32. A fused
function saves its inputs and computes the rest again in the backward pass, which is cheap next to the matrix products around
it. Where there is a kernel (`engine.kernels`), each passes over memory once.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from medsft.core.engine.kernels import kernels_for, liger_for, norms_for
from medsft.core.engine.nn.dtensor import local_part_of_sum


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x / rms(x) * weight over the last dimension, computed in fp32, in the dtype of `x`.

    Tensor-parallel ranks have this rank's tokens or heads in `x`, and a weight that is whole on each of them.
    """
    return _RMSNorm.apply(x, local_part_of_sum(weight), eps)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up. The backward pass may take the memory of `gate` and `up` for their gradients."""
    kernels = liger_for(gate, up)
    return kernels.swiglu(gate, up) if kernels else _SwiGLU.apply(gate, up)


def rotate_queries_and_keys(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Return `q` [T, H, d] and `k` [T, K, d] rotated as `rotate` does, perhaps in their own memory."""
    if kernels := liger_for(q, k, cos, sin):
        return kernels.rotate(q, k, cos, sin)
    return rotate(q, cos, sin), rotate(k, cos, sin)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate `heads` [T, H, d] by angles given as cosines and sines [T, 1, d / 2].

    Element i of the first half of a head is paired with element i of the second.
    """
    return _Rotate.apply(heads, cos, sin)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        if kernels := norms_for(x, weight):
            out, inverse = kernels.rms_norm(x, weight, eps)
            ctx.save_for_backward(x, weight, inverse)
            return out
        inverse = x.float().square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).to(x.dtype) * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        if kernels := norms_for(x, weight, grad):
            return *kernels.rms_norm_backward(x, weight, inverse, grad), None
        unit = x * inverse  # fp32, as `inverse` is
        grad_weight = (grad * unit).sum(tuple(range(x.ndim - 1)))
        grad_unit = (grad * weight).float()
        along = (grad_unit * unit).mean(-1, keepdim=True)
        grad_x = grad_unit.addcmul(unit, along, value=-1).mul_(inverse)
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        if kernels := kernels_for(gate, up):
            return kernels.swiglu(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        if kernels := kernels_for(gate, up, grad):
            return kernels.swiglu_backward(gate, up, grad)
        return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        kernels = kernels_for(heads, cos, sin)
        return kernels.rotate(heads, cos, sin) if kernels else _rotated(heads, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        kernels = kernels_for(grad, cos, sin)
        back = kernels.rotate(grad, cos, sin, back=True) if kernels else _rotated(grad, cos, -sin)
        return back, None, None


def _rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    out = torch.empty_like(heads)
    first, second = heads.chunk(2, dim=-1)
    out_first, out_second = out.chunk(2, dim=-1)
    torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out_second).addcmul_(first, sin)
    return out
