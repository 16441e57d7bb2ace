"""Tokens between tensor-parallel ranks: each has a part of them, and all while it computes with its part of a weight.

    this rank's [T / tp, h] --gather_tokens--> all [T, h] --columns of heads and features, then rows--> part of a sum [T, h]
        --sum_tokens--> this rank's [T / tp, h]

This is sequence parallelism (Korthikanti et al. 2022, the operators g and g bar). Activations are plain tensors, and only
weights are DTensors: DTensor works out placements anew for each shape that it has not seen, and streams without padding have
another number of tokens in each micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

# From torch 2.13 on they have these names, and the ones before are deprecated.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_Collective = Callable[[Tensor, ProcessGroup], Tensor]


def gather_tokens(part: Tensor, group: ProcessGroup) -> Tensor:
    """Return the tokens [T, ...] of all ranks, of which each has `part` [T / tp, ...], in the order of the ranks.

    The gradient that comes back on each rank is a part of a sum over the ranks.
    """
    return _Exchange.apply(part, group, _gathered, _summed)


def sum_tokens(parts: Tensor, group: ProcessGroup) -> Tensor:
    """Return this rank's tokens [T / tp, ...] of the sum over the ranks of `parts` [T, ...]; T is a multiple of the ranks."""
    return _Exchange.apply(parts, group, _summed, _gathered)


class _Exchange(torch.autograd.Function):
    """One collective on the way there, and for the gradient the other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup, there: _Collective, back: _Collective) -> Tensor:
        ctx.group, ctx.back = group, back
        return there(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.back(grad, ctx.group), None, None, None


def _gathered(part: Tensor, group: ProcessGroup) -> Tensor:
    out = part.new_empty(group.size() * len(part), *part.shape[1:])
    _all_gather(out, part.contiguous(), group=group)
    return out


def _summed(parts: Tensor, group: ProcessGroup) -> Tensor:
    out = parts.new_empty(len(parts) // group.size(), *parts.shape[1:])
    _reduce_scatter(out, parts.contiguous(), group=group)
    return out
