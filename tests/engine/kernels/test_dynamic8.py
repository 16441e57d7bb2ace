"""8-bit moments against the data type's definition: constants, nearest codes, errors, and what is quantized twice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from medsft.core.engine.kernels.dynamic8 import (
    Table,
    block_length,
    blocks_of_row,
    dequantize,
    dequantize_matrix,
    quantize,
    table,
)

SHAPES = [(8, 256), (3, 32), (5, 257), (2, 576), (4, 1000), (1, 1), (7, 2051)]
KINDS = {"signed": table(True, torch.device("cpu")), "unsigned": table(False, torch.device("cpu"))}


def coded(numbers: Tensor, kind: Table) -> tuple[Tensor, Tensor]:
    rows, columns = numbers.shape
    codes, scales = torch.empty(rows, columns, dtype=torch.uint8), torch.empty(rows, blocks_of_row(columns))
    quantize(numbers, codes, scales, kind)
    return codes, scales


def moments(shape: tuple[int, int], kind: Table) -> Tensor:
    """Numbers over many powers of ten, as moments are, with zeros, of which some are a whole block."""
    draw = torch.Generator().manual_seed(shape[1])
    found = torch.randn(shape, generator=draw) * 10 ** (torch.rand(shape, generator=draw) * 8 - 9)
    found[0, : shape[1] // 2] = 0
    return found if kind.signed else found.abs()


def test_the_constants_are_those_of_bitsandbytes() -> None:
    """As its `create_dynamic_map` has them: the ends, the middle, and how many there are in a decade."""
    signed, unsigned = KINDS["signed"].constants, KINDS["unsigned"].constants
    assert len(set(signed.tolist())) == len(set(unsigned.tolist())) == 256
    ends = [-0.99296875, -0.97890625, 0, 5.5e-7, 0.99296875, 1]
    assert signed[[0, 1, 127, 128, 254, 255]].tolist() == pytest.approx(ends)
    assert unsigned[[0, 1, 2, 3, 254, 255]].tolist() == pytest.approx([0, 3.25e-7, 7.75e-7, 2.125e-6, 0.996484375, 1])
    for found, largest in ((signed, 64), (unsigned, 128)):
        counts = [int(((found > 10.0**power) & (found < 10.0 ** (power + 1))).sum()) for power in range(-7, 0)]
        assert counts == [largest >> shift for shift in range(6, -1, -1)]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_number_gets_the_nearest_constant_of_its_block(shape: tuple[int, int], kind: Table) -> None:
    numbers = moments(shape, kind)
    codes, scales = coded(numbers, kind)
    length = block_length(shape[1], scales.shape[1])
    assert length <= 256
    known = kind.constants.double().numpy()
    for row in range(shape[0]):
        for block in range(scales.shape[1]):
            part = slice(block * length, (block + 1) * length)
            held = numbers[row, part].double().numpy()
            largest = held[np.abs(held).argmax()]
            assert scales[row, block].item() == largest
            units = held / (largest or 1)
            distances = np.abs(units[:, None] - known)
            taken = np.take_along_axis(distances, codes[row, part].long().numpy()[:, None], axis=1)[:, 0]
            assert np.all(taken <= distances.min(axis=1) + 1e-7)
    again = dequantize(codes, scales, kind)
    assert torch.all(again[numbers == 0] == 0)
    assert torch.all((again - numbers).abs() <= 0.0071 * scales.abs().repeat_interleave(length, 1)[:, : shape[1]])


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_numbers_that_were_quantized_are_quantized_to_themselves(kind: Table) -> None:
    codes, scales = coded(moments((64, 1024), kind), kind)
    numbers = dequantize(codes, scales, kind)
    codes_again, scales_again = coded(numbers, kind)
    assert torch.equal(scales_again, scales)
    assert torch.equal(dequantize(codes_again, scales_again, kind), numbers)


def test_a_matrix_is_read_whatever_the_parts_of_its_columns() -> None:
    kind = KINDS["signed"]
    parts = [coded(part.contiguous(), kind) for part in moments((6, 600), kind).chunk(3, dim=1)]
    codes, scales = torch.cat([part[0] for part in parts], 1), torch.stack([part[1] for part in parts], 1)
    assert scales.shape == (6, 3, 1)
    expected = torch.cat([dequantize(*part, kind) for part in parts], 1)
    assert torch.equal(dequantize_matrix(codes, scales, kind), expected)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_codes_are_found_as_a_search_among_the_thresholds_finds_them(kind: Table) -> None:
    draw = torch.Generator().manual_seed(0)
    near = kind.thresholds[:-1].view(torch.int32)[:, None] + torch.arange(-3, 4, dtype=torch.int32)
    anywhere = torch.rand(1 << 14, generator=draw) * 10 ** (torch.rand(1 << 14, generator=draw) * 9 - 9)
    units = torch.cat((near.flatten().view(torch.float32), kind.constants, anywhere, torch.tensor([0.0, 1.0])))
    units = torch.cat((units, -units)) if kind.signed else units.abs()
    units = units.clamp(-0.999 if kind.signed else 0, 1)
    rows = torch.stack((units, torch.ones_like(units)), dim=1)  # blocks of two numbers, with a scale of 1
    expected = torch.bucketize(units, kind.thresholds[:-1], right=True)
    assert torch.equal(coded(rows, kind)[0][:, 0].long(), expected)
