"""This rank's part of a weight that may be divided over ranks."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor, Partial
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def local_part(tensor: Tensor) -> Tensor:
    """Return this rank's shard as a plain tensor on the same memory, through which gradients pass."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_part_of_sum(tensor: Tensor) -> Tensor:
    """Return what `local_part` does, for a rank that computes with a part of the tokens, of the features or of the rows.

    Of a weight that is whole on every rank, the gradient that comes back is this rank's part of a sum over the ranks, and is
    marked as such.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    whole = all(placement.is_replicate() for placement in tensor.placements)
    return tensor.to_local(grad_placements=[Partial()] * len(tensor.placements)) if whole else tensor.to_local()


def local_range(parameter: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return (offset of this rank's shard in the full parameter, its shape)."""
    if not isinstance(parameter, DTensor):
        return (0,) * parameter.ndim, tuple(parameter.shape)
    shape, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return tuple(offset), tuple(shape)
