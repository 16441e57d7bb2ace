"""The products of tokens with weights, which are most of a training step.

torch multiplies fp32 at the processor's rate where its library was made for the processor; where it was not, `native` has a
product of its own. A processor that is slow with bf16 multiplies the same numbers in fp32: that is exact, and as in a product
of bf16 the sum is rounded once.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from medsft.core.engine.kernels import cpu

_LEAST_ROWS = 64
"""Of fewer rows widening the other factor takes longer than it saves."""
_BLOCK = 2048


class Linear(nn.Linear):
    """x @ weight.T + bias for x [T, in]."""

    def forward(self, x: Tensor) -> Tensor:
        """Return [T, out]."""
        if not (cpu.multiplies(x, self.weight) or _widens(x, self.weight)):
            return F.linear(x, self.weight, self.bias)
        out = _Linear.apply(x, self.weight)
        return out if self.bias is None else out + self.bias


def product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Return a @ b, [n, m] for a [n, k] and b [k, m], in `out` if that is given. It is not differentiated."""
    if cpu.multiplies(a, b):
        return cpu.multiply(a, b, out)
    return _widened(a, b, out) if _widens(a, b) else torch.mm(a, b, out=out)


def _widens(a: Tensor, b: Tensor) -> bool:
    """Return whether the processor multiplies these in fp32 sooner than in bf16, with what it takes to widen them."""
    fits = a.dtype == torch.bfloat16 and a.ndim == 2 and len(a) >= _LEAST_ROWS
    return fits and cpu.bf16_is_slow() and cpu.are_plain(a, b)


def _widened(a: Tensor, b: Tensor, out: Tensor | None) -> Tensor:
    """Multiply block by block, in memory that stays: what is widened is in the cache when it is multiplied, and never much."""
    out = a.new_empty(len(a), b.shape[1]) if out is None else out
    for rows in _blocks(len(a)):
        for columns in _blocks(b.shape[1]):
            total = _scratch.take("total", out[rows, columns])
            for number, steps in enumerate(_blocks(len(b))):
                left, right = _wide("left", a[rows, steps]), _wide("right", b[steps, columns])
                torch.addmm(total, left, right, beta=min(number, 1), out=total)
            out[rows, columns] = total
    return out


def _wide(name: str, block: Tensor) -> Tensor:
    """Return the block in fp32, in the order in memory that it has: either may be fast, a change of order is not."""
    return _scratch.take(name, block.T).T.copy_(block) if block.stride(0) == 1 else _scratch.take(name, block).copy_(block)


class _Scratch(threading.local):
    """fp32 memory under names, of this thread. New memory each time would lie between what has to stay, and leave gaps."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, like: Tensor) -> Tensor:
        """Return a contiguous tensor of the shape of `like`, with any content; it ends when the name is taken again."""
        if name not in self._held or self._held[name].numel() < like.numel():
            self._held[name] = torch.empty(like.numel())
        return self._held[name][: like.numel()].view(like.shape)


_scratch = _Scratch()


def _blocks(length: int) -> list[slice]:
    return [slice(start, start + _BLOCK) for start in range(0, length, _BLOCK)]


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
