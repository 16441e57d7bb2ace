"""The codec of 8-bit moments: dynamic quantization by blocks (Dettmers et al. 2022, arXiv 2110.02861), of rows of numbers.

    numbers fp32 [rows, columns] --quantize--> codes uint8 [rows, columns], scales fp32 [rows, blocks]

A block is `BLOCK` neighbors of a row, or a few fewer, so that the blocks of a row are equally long. A number is one of 256
constants times the scale of its block. That scale is the block's largest number by magnitude, with its sign. bitsandbytes and
torchao take the magnitude, and their constants reach from -0.993 to 1; with the sign a block's largest number is exact, and
numbers that were quantized before are quantized to themselves.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from medsft.core.planning.optimizer import BLOCK

_DECADES = 7
"""Powers of ten that the constants reach over."""


class Table(NamedTuple):
    """The data type of a moment."""

    constants: Tensor
    """fp32 [256], ascending."""
    thresholds: Tensor
    """The middles between neighboring constants, and infinity, fp32 [256]: a number there gets the upper one."""
    beginnings: Tensor
    """By the upper 16 bits of an fp32 number, how many thresholds the least number that has them reaches, int32 [65536].

    Such numbers lie so near one another that there is at most one threshold among them. To look this up takes a tenth of the
    time of a search among the thresholds.
    """
    signed: bool
    """Without a sign, constants and numbers are 0 or more."""


def blocks_of_row(columns: int) -> int:
    """Return how many blocks a row of so many numbers has."""
    return -(-columns // BLOCK)


def block_length(columns: int, blocks: int) -> int:
    """Return the length of the blocks of a row; the last one may be shorter."""
    return -(-columns // blocks)


def quantize(numbers: Tensor, codes: Tensor, scales: Tensor, table: Table) -> None:
    """Write the codes and scales of finite fp32 `numbers` [rows, columns]."""
    columns, blocks = numbers.shape[1], scales.shape[1]
    padding = blocks * block_length(columns, blocks) - columns
    units = (F.pad(numbers, (0, padding)) if padding else numbers).unflatten(1, (blocks, -1))
    if table.signed:
        least, greatest = torch.aminmax(units, dim=-1)
        largest = torch.where(greatest >= -least, greatest, least)
    else:
        largest = units.amax(-1)
    units = (units / largest.where(largest != 0, 1).unsqueeze(-1)).flatten()
    found = table.beginnings.index_select(0, (units.view(torch.int32) >> 16) & 0xFFFF)
    found += units >= table.thresholds.index_select(0, found)
    codes.copy_(found.view(len(codes), -1)[:, :columns])
    scales.copy_(largest)


def dequantize(codes: Tensor, scales: Tensor, table: Table) -> Tensor:
    """Return the fp32 numbers [rows, columns] of codes and scales."""
    (rows, columns), blocks = codes.shape, scales.shape[1]
    numbers = table.constants.index_select(0, codes.flatten().int()).view(rows, columns)
    length = block_length(columns, blocks)
    if columns == blocks * length:
        return (numbers.unflatten(1, (blocks, length)) * scales.unsqueeze(-1)).view(rows, columns)
    return numbers * scales.repeat_interleave(length, dim=1)[:, :columns]


def dequantize_matrix(codes: Tensor, scales: Tensor, table: Table) -> Tensor:
    """Return the fp32 numbers of a matrix as a checkpoint holds it: scales [rows, parts of the columns, blocks of a part]."""
    rows, parts, blocks = scales.shape
    return dequantize(codes.view(rows * parts, -1), scales.view(rows * parts, blocks), table).view(codes.shape)


@cache
def table(signed: bool, device: torch.device) -> Table:
    """Return the dynamic data type, with or without a sign.

    In each decade below 1 there are twice as many constants as in the one below it, in the middles of equal intervals; 0 and 1
    come on top. Without a sign the decades have twice as many.
    """
    found = [0.0, 1.0]
    for decade in range(_DECADES):
        edges = torch.linspace(0.1, 1, 2 ** (decade if signed else decade + 1) + 1, dtype=torch.float64)
        middles = (10.0 ** (decade + 1 - _DECADES) * (edges[1:] + edges[:-1]) / 2).tolist()
        found += middles + ([-middle for middle in middles] if signed else [])
    constants = torch.tensor(sorted(found), dtype=torch.float32)
    exact = constants.double()
    thresholds = ((exact[1:] + exact[:-1]) / 2).float()
    upper = torch.arange(1 << 16, dtype=torch.int32) << 16
    least = torch.where(upper < 0, upper | 0xFFFF, upper).view(torch.float32)  # of negative numbers the one with all lower bits
    beginnings = torch.bucketize(least, thresholds, right=True, out_int32=True)
    ends = torch.cat((thresholds, torch.tensor([math.inf])))
    return Table(constants.to(device), ends.to(device), beginnings.to(device), signed)
