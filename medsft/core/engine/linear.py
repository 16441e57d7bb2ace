"""The products of tokens with weights, which are most of a training step.

torch multiplies bf16 at the processor's rate, and fp32 where its library was made for the processor. Where it was not, `native`
has a product of its own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from medsft.core.engine import native


class Linear(nn.Linear):
    """x @ weight.T + bias for x [T, in]."""

    def forward(self, x: Tensor) -> Tensor:
        """Return [T, out]."""
        if not native.multiplies(x, self.weight):
            return F.linear(x, self.weight, self.bias)
        out = _Linear.apply(x, self.weight)
        return out if self.bias is None else out + self.bias


def product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Return a @ b, [n, m] for a [n, k] and b [k, m], in `out` if that is given. It is not differentiated."""
    return native.multiply(a, b, out) if native.multiplies(a, b) else torch.mm(a, b, out=out)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight.T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight = ctx.needs_input_grad
        return product(grad, weight) if for_x else None, product(grad.T, x) if for_weight else None
