"""The codec of nf4, whose format `core.models.nf4` describes: matrices to codes and back, whole or a rank's part of them.

    matrix [rows, columns] --pack--> codes (two in a byte), scales (int8, one a block), groups (fp32, two a group)
    codes, scales, groups --unpack--> matrix in fp32 or bf16

In C where the kernels could be compiled, else by torch's operations, with the same numbers bit for bit. On a GPU (not run on
one yet) bitsandbytes makes the numbers of the codes where it is installed, else torch's operations do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from medsft.core.engine.kernels import kernels_for
from medsft.core.models.nf4 import BLOCK, CONSTANTS, GROUP, ZERO, blocks_of_row

_NUMBERS_AT_A_TIME = 2**21
"""Numbers of a matrix that are packed, or unpacked by torch's operations, at a time: they take some ten MB in fp32."""
_NUMBERS_AT_A_TIME_ON_GPU = 2**24
"""The same of unpacking on a GPU, where they take 100 MB: a start of a kernel costs as much as a million numbers."""


@dataclass(frozen=True, slots=True)
class Part:
    """The rows and columns of a matrix that a rank holds, none of which is empty."""

    shape: tuple[int, int]
    """Of the whole matrix."""
    rows: range
    columns: range

    @classmethod
    def whole(cls, rows: int, columns: int) -> Part:
        """Return all of a matrix."""
        return cls((rows, columns), range(rows), range(columns))

    @property
    def size(self) -> tuple[int, int]:
        """Return (rows, columns) of the part."""
        return len(self.rows), len(self.columns)

    @property
    def blocks(self) -> range:
        """Return which blocks of each row hold the columns."""
        return range(self.columns.start // BLOCK, blocks_of_row(self.columns.stop))

    @property
    def groups(self) -> range:
        """Return the groups of blocks, numbered through the whole matrix, in which the part's blocks lie."""
        return range(
            self._place(self.rows[0], self.blocks[0]) // GROUP, self._place(self.rows[-1], self.blocks[-1]) // GROUP + 1
        )

    @property
    def first_block(self) -> int:
        """Return the place of the part's first block in the first of its groups."""
        return self._place(self.rows[0], self.blocks[0]) % GROUP

    def chunks(self) -> Iterator[range]:
        """Yield neighboring rows of the matrix, until those of the part are among them.

        Their blocks are whole groups, and the chunks are the same for every part.
        """
        least = GROUP // math.gcd(GROUP, blocks_of_row(self.shape[1]))
        step = least * max(1, _NUMBERS_AT_A_TIME // (least * self.shape[1]))
        for start in range(self.rows.start // step * step, self.rows.stop, step):
            yield range(start, min(start + step, self.shape[0]))

    def held_rows(self, chunk: range) -> range:
        """Return the rows of a chunk that are in the part."""
        return range(max(chunk.start, self.rows.start), min(chunk.stop, self.rows.stop))

    def held_groups(self, chunk: range) -> range:
        """Return the groups of a chunk that are in the part."""
        first, last = self._place(chunk.start, 0) // GROUP, -(-self._place(chunk.stop, 0) // GROUP)
        return range(max(first, self.groups.start), min(last, self.groups.stop))

    def _place(self, row: int, block: int) -> int:
        return row * blocks_of_row(self.shape[1]) + block


@dataclass(frozen=True, slots=True)
class Packed:
    """Rows of a matrix in nf4, of a part of it those columns that are in the part."""

    codes: Tensor
    """uint8 [rows, half of the columns, rounded up]: of two neighbors the first in the upper four bits."""
    scales: Tensor
    """int8 [rows, blocks]."""
    groups: Tensor
    """fp32 [groups, 2]: the middle and the step of the largest values, by which a scale is read: middle + scale * step."""

    @classmethod
    def empty(cls, part: Part, device: torch.device | str = "cpu") -> Packed:
        """Return memory for a part, with any content."""
        rows, columns = part.size
        return cls(
            torch.empty(rows, -(-columns // 2), dtype=torch.uint8, device=device),
            torch.empty(rows, len(part.blocks), dtype=torch.int8, device=device),
            torch.empty(len(part.groups), 2, dtype=torch.float32, device=device),
        )


def pack(part: Part, read: Callable[[slice], Tensor]) -> Packed:
    """Return a part of the matrix of which `read` returns whole rows, on the CPU and in any floating format.

    Some rows are asked for at a time, with a few beside the part's own: groups are made of whole rows. The numbers must be
    finite.
    """
    packed = Packed.empty(part)
    for chunk in part.chunks():
        rows, groups, found = part.held_rows(chunk), part.held_groups(chunk), pack_chunk(part, chunk, read)
        first = part.rows.start, part.groups.start
        packed.codes[rows.start - first[0] : rows.stop - first[0]] = found.codes
        packed.scales[rows.start - first[0] : rows.stop - first[0]] = found.scales
        packed.groups[groups.start - first[1] : groups.stop - first[1]] = found.groups
    return packed


def pack_chunk(part: Part, chunk: range, read: Callable[[slice], Tensor]) -> Packed:
    """Return what of a chunk of `part` is in the part: its `held_rows` and `held_groups`."""
    matrix = read(slice(chunk.start, chunk.stop))
    matrix = matrix.contiguous() if matrix.dtype in (torch.float32, torch.bfloat16) else matrix.float()
    largest = _largest(matrix)
    scales, groups = _scales(largest)
    own, held = part.held_rows(chunk), part.held_groups(chunk)
    rows = slice(own.start - chunk.start, own.stop - chunk.start)
    first = chunk.start * blocks_of_row(part.shape[1]) // GROUP
    return Packed(
        _codes(matrix[rows], largest[rows], part.columns),
        scales[rows, part.blocks.start : part.blocks.stop],
        groups[held.start - first : held.stop - first],
    )


def unpack(packed: Packed, part: Part, out: Tensor) -> Tensor:
    """Fill the contiguous `out` [rows, columns], fp32 or bf16, with the numbers of a part, and return it.

    Each is a product in fp32, rounded to the format of `out`.
    """
    assert out.is_contiguous()
    assert tuple(out.shape) == part.size
    if kernels := kernels_for(out):
        kernels.nf4_numbers_(
            out,
            packed.codes,
            packed.scales,
            packed.groups,
            _constants(out.device),
            begins=part.columns.start % BLOCK,
            first_block=part.first_block,
            row_blocks=blocks_of_row(part.shape[1]),
        )
        return out
    largest = _largest_again(packed, part)
    if (bitsandbytes := _bitsandbytes(out)) and not (part.columns.start % BLOCK or len(part.columns) % BLOCK):
        bitsandbytes.dequantize_4bit.out(packed.codes, largest, BLOCK, "nf4", out.shape, out.dtype, out=out)
        return out
    begins, columns = part.columns.start % BLOCK, len(part.columns)
    step = max(1, (_NUMBERS_AT_A_TIME_ON_GPU if out.is_cuda else _NUMBERS_AT_A_TIME) // columns)
    pairs, whole_blocks = _pairs(out.device), not (begins or columns % BLOCK)
    for start in range(0, len(out), step):
        rows = slice(start, start + step)
        numbers = F.embedding(packed.codes[rows].int(), pairs).flatten(1)[:, :columns]
        if whole_blocks:
            blocks = len(numbers), columns // BLOCK, BLOCK
            torch.mul(numbers.view(blocks), largest[rows, :, None], out=out[rows].view(blocks))
        else:
            out[rows] = numbers * largest[rows].repeat_interleave(BLOCK, dim=1)[:, begins : begins + columns]
    return out


def _largest(matrix: Tensor) -> Tensor:
    """Return the largest absolute value of each block, fp32 [rows, blocks]."""
    if kernels := kernels_for(matrix):
        return kernels.nf4_largest(matrix)
    rows, columns = matrix.shape
    blocks = blocks_of_row(columns)
    return F.pad(matrix.float().abs(), (0, blocks * BLOCK - columns)).view(rows, blocks, BLOCK).amax(-1)


def _scales(largest: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest values in int8, and the middle and the step of each group.

    Computed in fp64 and rounded once, so that no compiler's choice of instructions is seen.
    """
    count = largest.numel()
    flat = largest.flatten().double()
    groups = torch.cat((flat, flat[-1:].expand(-count % GROUP))).view(-1, GROUP)
    least, greatest = groups.amin(1), groups.amax(1)
    found = torch.stack(((least + greatest) / 2, (greatest - least) / 254), dim=1).float()
    middle, step = found.double().unsqueeze(2).unbind(1)
    scales = ((groups - middle) / step.where(step > 0, 1)).round_().clamp_(-127, 127)
    return scales.flatten()[:count].view(largest.shape).to(torch.int8), found


def _largest_again(packed: Packed, part: Part) -> Tensor:
    """Return the largest absolute values of the part's blocks as their scales say them, fp32 [rows, blocks]."""
    (rows, blocks), device = packed.scales.shape, packed.scales.device
    places = torch.arange(rows, device=device)[:, None] * blocks_of_row(part.shape[1]) + torch.arange(blocks, device=device)
    middle, step = packed.groups[(places + part.first_block) // GROUP].double().unbind(2)
    return (packed.scales * step + middle).float()


def _codes(matrix: Tensor, largest: Tensor, columns: range) -> Tensor:
    """Return the codes of these columns, two in a byte: those of the nearest constants, of the lower one in the middle."""
    if kernels := kernels_for(matrix):
        return kernels.nf4_codes(matrix, largest, _thresholds(), columns)
    width = matrix.shape[1]
    units = matrix.float() / largest.where(largest > 0, 1).repeat_interleave(BLOCK, dim=1)[:, :width]
    codes = torch.bucketize(units[:, columns.start : columns.stop].contiguous(), _thresholds(), out_int32=True).to(torch.uint8)
    codes = F.pad(codes, (0, len(columns) % 2), value=ZERO)
    return codes[:, ::2] << 4 | codes[:, 1::2]


@cache
def _constants(device: torch.device) -> Tensor:
    return torch.tensor(CONSTANTS, dtype=torch.float32, device=device)


@cache
def _pairs(device: torch.device) -> Tensor:
    """Return the two constants that each byte of codes means, fp32 [256, 2]."""
    byte = torch.arange(256)
    return _constants(torch.device("cpu"))[torch.stack((byte >> 4, byte & 15), dim=1)].to(device)


@cache
def _thresholds() -> Tensor:
    """Return the middles between neighboring constants, fp32 [15]."""
    exact = torch.tensor(CONSTANTS, dtype=torch.float32).double()
    return ((exact[1:] + exact[:-1]) / 2).float()


def _bitsandbytes(out: Tensor) -> Any:
    """Return the operations of bitsandbytes for a tensor on a GPU, None where it is not installed and for other tensors."""
    return _load_bitsandbytes() if out.is_cuda else None


@cache
def _load_bitsandbytes() -> Any:
    try:
        import bitsandbytes  # noqa: F401  (it registers its operations with torch)
    except (ImportError, RuntimeError, OSError):
        return None
    return torch.ops.bitsandbytes
