"""Stochastic rounding to bf16: up or down, each with the probability that makes the mean of the results the number itself.

Rounded to the nearest, a bf16 weight stays where it is under updates below 1/512 of it, which most are; rounded stochastically
it moves as far as they say on average, without an fp32 copy of it.

The random bits are a hash of a seed, the iteration, the name of the weight and the place of the number in the whole weight. So
they are the same at every layout, on every device and after a resume, and copies of a weight on several ranks stay equal. No
state is kept.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_LOW_32 = 0xFFFFFFFF
_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B
"""The factors of `lowbias32`, a hash of 32 bits (Wellons, github.com/skeeto/hash-prospector)."""
_SECOND_SIGNED = _SECOND - (1 << 32)
_UPPER_16 = -(1 << 16)
"""The bits of an fp32 number that a bf16 number has, as an int32."""


def random_bits(
    seed: int, iteration: int, name: str, *, rows: tuple[int, int], columns: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the random bits of a part of a weight in an iteration: of its rows, int32 [rows], and of its columns.

    `rows` and `columns` are (first in the whole weight, number). `round_to_bf16` mixes both.
    """
    digest = hashlib.sha256(f"{seed} {iteration} {name}".encode()).digest()
    keys = int.from_bytes(digest[:4]), int.from_bytes(digest[4:8])
    return _bits(*rows, keys[0], device), _bits(*columns, keys[1], device)


def round_to_bf16(numbers: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return fp32 `numbers` [rows, columns] in bf16, stochastically rounded by the random bits of these rows and columns.

    A number that bf16 has stays what it is.
    """
    noise = rows[:, None] ^ columns
    noise.mul_(_FIRST)
    noise ^= noise >> 15
    noise.mul_(_SECOND_SIGNED)
    noise >>= 16
    noise &= 0xFFFF
    noise += numbers.view(torch.int32)
    noise &= _UPPER_16
    return noise.view(torch.float32).to(torch.bfloat16)


def _bits(first: int, count: int, key: int, device: torch.device) -> Tensor:
    """Return 32 random bits for each of `count` places, as int32."""
    places = torch.arange(first, first + count, dtype=torch.int64, device=device)
    hashed = _hash(_hash(places & _LOW_32) ^ key)
    return (hashed - ((hashed >> 31) << 32)).to(torch.int32)


def _hash(values: Tensor) -> Tensor:
    """Return `lowbias32` of 32-bit numbers, held in int64."""
    values = values ^ (values >> 16)
    values = (values * _FIRST) & _LOW_32
    values = values ^ (values >> 15)
    values = (values * _SECOND) & _LOW_32
    return values ^ (values >> 16)
