"""Activations that are cheap to compute: computed again in the backward pass, not kept for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from medsft.core.engine.nn.dtensor import local_part


@contextmanager
def computed_again(value: Tensor, compute: Callable[[], Tensor]) -> Iterator[None]:
    """What is done inside keeps no `value` for its backward pass, which calls `compute` for it each time that it needs it.

    Of a DTensor that was made from `value` the same holds. `compute` must return the same numbers, and lives until the backward
    pass with all that it holds. Not for code inside a checkpoint, which cannot free what `compute` holds.
    """
    memory, shape = value.data_ptr(), value.shape

    def pack(saved: Tensor) -> Tensor | Callable[[], Tensor]:
        local = local_part(saved)
        if local.data_ptr() != memory or local.shape != shape:
            return saved
        if not isinstance(saved, DTensor):
            return compute
        mesh, placements = saved.device_mesh, saved.placements
        return lambda: DTensor.from_local(compute(), mesh, placements, run_check=False)

    def unpack(packed: Tensor | Callable[[], Tensor]) -> Tensor:
        return packed if isinstance(packed, Tensor) else packed()

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
