"""Products of tokens with weights, most of the work of a training step, by the product that is fastest (`matmul_for`)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from medsft.core.engine.kernels import matmul_for
from medsft.core.engine.nn.dtensor import local_part


class Linear(nn.Linear):
    """x @ weight.T + bias for x [T, in], with this rank's part of the weight where it is divided over ranks."""

    def forward(self, x: Tensor) -> Tensor:
        """Return [T, out]; `out` is what this rank has of it, and where columns are divided the result is a part of a sum."""
        weight, bias = local_part(self.weight), None if self.bias is None else local_part(self.bias)
        if matmul_for(x, weight) is None:
            return F.linear(x, weight, bias)
        out = _Linear.apply(x, weight)
        return out if bias is None else out + bias


def matmul(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Return a @ b, [n, m] for a [n, k] and b [k, m], in `out` if that is given. Autograd does not see this product."""
    own = matmul_for(a, b)
    return torch.mm(a, b, out=out) if own is None else own(a, b, out)


def add_product_(out: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Add a @ b to `out` [n, m] in place, for a [n, k] and b [k, m] with a small k, and return it."""
    own = matmul_for(a, b)
    return out.addmm_(a, b) if own is None else out.add_(own(a, b))


def add_product_in_fp32_(out: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Add a @ b to the contiguous fp32 `out` [n, m] in place, for a [n, k] and b [k, m], and return it.

    On an Nvidia GPU a product of 16-bit matrices is added as the fp32 sums that it is made of, in one pass over `out`. By
    `baddbmm`: not every version of torch lets `addmm` add to another format than that of `a`. Not run on a GPU yet.
    """
    if out.is_cuda and torch.version.cuda and a.dtype in (torch.bfloat16, torch.float16):
        total = out[None]
        torch.baddbmm(total, a[None], b[None], out_dtype=torch.float32, out=total)
        return out
    return out.add_(matmul(a, b))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        for_x, for_weight = ctx.needs_input_grad
        ctx.save_for_backward(x if for_weight else None, weight if for_x else None)
        return matmul(x, weight.T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight = ctx.needs_input_grad
        return matmul(grad, weight) if for_x else None, matmul(grad.T, x) if for_weight else None
