"""A frozen weight in nf4, which a layer holds in place of a parameter; and frozen weights in the format of a product."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from medsft.core.engine.kernels.nf4 import Packed, Part, pack_chunk, unpack
from medsft.core.engine.kernels.scratch import Scratch
from medsft.core.engine.nn.dtensor import local_part, local_range

_scratch = Scratch()


class QuantizedWeight(nn.Module):
    """A matrix [out, in], or the part of it that a tensor-parallel rank has, in nf4.

    Its tensors (see `Packed`) are frozen parameters, so that FSDP divides each by rows and gathers it as it is.
    """

    def __init__(self, part: Part, device: torch.device | str) -> None:
        super().__init__()
        self.part = part
        packed = Packed.empty(part, device)
        self.codes = nn.Parameter(packed.codes, requires_grad=False)
        self.scales = nn.Parameter(packed.scales, requires_grad=False)
        self.groups = nn.Parameter(packed.groups, requires_grad=False)

    @classmethod
    def like(cls, weight: Tensor) -> QuantizedWeight:
        """Return memory for this rank's part of a weight, on its device."""
        starts, shape = local_range(weight)
        rows, columns = (range(start, start + length) for start, length in zip(starts, shape, strict=True))
        return cls(Part((weight.shape[0], weight.shape[1]), rows, columns), weight.device)

    def fill(self, read: Callable[[slice], Tensor]) -> None:
        """Quantize what this rank has of the matrix of which `read` returns whole rows, some at a time."""
        part = self.part
        for chunk in part.chunks():
            row, group = part.held_rows(chunk).start - part.rows.start, part.held_groups(chunk).start - part.groups.start
            sizes = len(part.held_rows(chunk)), len(part.held_groups(chunk))
            if _overlap(self.codes, row, sizes[0]) or _overlap(self.groups, group, sizes[1]):
                packed = pack_chunk(part, chunk, read)
                _write(packed.codes, self.codes, row)
                _write(packed.scales, self.scales, row)
                _write(packed.groups, self.groups, group)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """Return the part [rows, columns], valid until this thread asks for another frozen weight."""
        packed = Packed(self.codes, self.scales, self.groups)
        return unpack(packed, self.part, _scratch.take("weight", self.part.size, dtype, self.codes.device))


def in_format(weight: Tensor | QuantizedWeight, dtype: torch.dtype) -> Tensor:
    """Return this rank's part of a frozen weight in `dtype`. A converted one is valid until this thread asks for another.

    The memory of the largest stays. So of all frozen weights one at a time is there in the computing format.
    """
    if isinstance(weight, QuantizedWeight):
        return weight.dequantized(dtype)
    local = local_part(weight.detach())
    return local if local.dtype == dtype else _scratch.take("weight", local.shape, dtype, local.device).copy_(local)


def _overlap(target: Tensor, first: int, count: int) -> range:
    """Return which of `count` rows from `first` on are in this rank's shard of `target`."""
    (start, *_), (length, *_) = local_range(target)
    return range(max(first, start), min(first + count, start + length))


def _write(values: Tensor, target: Tensor, first: int) -> None:
    """Copy rows, of which the first is row `first` of `target`, into this rank's shard of it, as far as they are in it."""
    rows, (start, *_) = _overlap(target, first, len(values)), local_range(target)[0]
    if rows:
        local_part(target)[rows.start - start : rows.stop - start] = values[rows.start - first : rows.stop - first]
