"""Products of bf16 matrices computed in fp32, for processors that multiply fp32 faster.

Each bf16 number is exact in fp32, and the sum is rounded to bf16 once, as in a bf16 product with an fp32 accumulator.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medsft.core.engine.kernels.scratch import Scratch

_BLOCK = 2048
"""Rows, columns and steps that are converted at a time: the fp32 copies stay in the cache until they are multiplied."""


def matmul_in_fp32(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Return a @ b for bf16 a [n, k] and b [k, m], in `out` if that is given, block by block in scratch memory that is kept."""
    out = a.new_empty(len(a), b.shape[1]) if out is None else out
    for rows in _blocks(len(a)):
        for columns in _blocks(b.shape[1]):
            total = _scratch.take("total", out[rows, columns].shape)
            for number, steps in enumerate(_blocks(len(b))):
                left, right = _in_fp32("left", a[rows, steps]), _in_fp32("right", b[steps, columns])
                torch.addmm(total, left, right, beta=min(number, 1), out=total)
            out[rows, columns] = total
    return out


def _in_fp32(name: str, block: Tensor) -> Tensor:
    """Return the block in fp32, in the memory order that it has: a product reads either order fast, reordering is slow."""
    return (
        _scratch.take(name, block.T.shape).T.copy_(block)
        if block.stride(0) == 1
        else _scratch.take(name, block.shape).copy_(block)
    )


_scratch = Scratch()


def _blocks(length: int) -> list[slice]:
    return [slice(start, start + _BLOCK) for start in range(0, length, _BLOCK)]
