"""Activations that are cheap to compute are computed again in the backward pass instead of saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def recompute_in_backward(value: Tensor, compute: Callable[[], Tensor]) -> Iterator[None]:
    """Inside this context autograd does not save `value`; the backward pass calls `compute()` for all that need it.

    `compute` must return the same numbers; it is kept until the backward pass, with all that it refers to. Do not use this
    inside a checkpoint, which cannot free what `compute` refers to.
    """
    memory, shape = value.data_ptr(), value.shape
    uses, left, kept = 0, 0, list[Tensor]()

    def again() -> Tensor:
        nonlocal left
        if not kept:
            kept.append(compute())
            left = uses
        left -= 1
        return kept.pop() if left == 0 else kept[0]

    def pack(saved: Tensor) -> Tensor | Callable[[], Tensor]:
        if saved.data_ptr() != memory or saved.shape != shape:
            return saved
        nonlocal uses
        uses += 1
        return again

    def unpack(packed: Tensor | Callable[[], Tensor]) -> Tensor:
        return packed if isinstance(packed, Tensor) else packed()

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
