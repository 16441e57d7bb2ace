"""nf4 against its definition in numpy, bit for bit, with and without our kernels, whole and in the parts of every layout."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import pytest
import tiny
import torch

from medsft.core.engine.kernels import cpu
from medsft.core.engine.kernels.nf4 import Part, pack, unpack
from medsft.core.models.nf4 import CONSTANTS, blocks_of_row, is_quantized, stored_bytes

SHAPES = [(192, 576), (600, 1536), (3, 5), (1, 1), (7, 130), (300, 64), (70, 100), (513, 33)]


@pytest.fixture(params=["kernels", "torch"])
def either_way(request, monkeypatch):
    """Our kernels, and torch's operations."""
    if request.param == "torch":
        monkeypatch.setattr(cpu, "supports", lambda *_: False)
    elif cpu.library() is None:
        pytest.skip("no C compiler")


def weights(rows, columns, *, dtype=torch.float32):
    """Normal numbers, with a few that are far away, a block of zeros, and one number for a whole row."""
    made = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows * columns)) * 0.02
    made.view(-1)[:: 1 + made.numel() // 7] *= 30
    made[0, :64] = 0
    made[-1] = 0.01 if rows > 1 else made[-1]
    return made.to(dtype)


def packed(matrix, part=None):
    return pack(part or Part.whole(*matrix.shape), lambda rows: matrix[rows])


def numbers(matrix, part=None, dtype=torch.float32):
    part = part or Part.whole(*matrix.shape)
    return unpack(packed(matrix, part), part, torch.empty(part.size, dtype=dtype))


def by_definition(matrix):
    """Return the codes and the numbers: nearest constants by fp64, and largest values in int8 by groups."""
    constants = np.array(CONSTANTS, dtype=np.float32)
    rows, columns = matrix.shape
    codes, largest = np.zeros((rows, columns), dtype=np.int64), []
    for row in range(rows):
        for start in range(0, columns, 64):
            block = matrix[row, start : start + 64]
            largest.append(np.abs(block).max())
            units = block / (largest[-1] or np.float32(1))
            distances = np.abs(units.astype(np.float64)[:, None] - constants.astype(np.float64))
            codes[row, start : start + 64] = distances.argmin(axis=1)
    again = []
    for start in range(0, len(largest), 256):
        group = np.array(largest[start : start + 256], dtype=np.float64)
        middle = np.float64(np.float32((group.min() + group.max()) / 2))
        step = np.float64(np.float32((group.max() - group.min()) / 254))
        again += list((middle + np.rint((group - middle) / (step or 1)) * step).astype(np.float32))
    width = blocks_of_row(columns)
    factors = np.repeat(np.array(again, dtype=np.float32).reshape(rows, width), 64, axis=1)[:, :columns]
    return codes, constants[codes] * factors


def test_the_constants_are_quantiles_of_the_normal_distribution():
    """As bitsandbytes makes them: eight positive and seven negative ones, between 1 - 0.9677083 and 0.9677083."""
    edge, quantile = 0.9677083, NormalDist().inv_cdf
    above = [quantile(edge + (0.5 - edge) * i / 8) for i in range(8)]
    below = [-quantile(edge + (0.5 - edge) * i / 7) for i in range(7)]
    assert sorted(number / above[0] for number in [*above, 0.0, *below]) == pytest.approx(CONSTANTS, abs=2e-7)
    assert [float(np.float32(number)) for number in CONSTANTS] == list(CONSTANTS)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.usefixtures("either_way")
def test_codes_and_numbers_are_those_of_the_definition(shape, dtype):
    matrix = weights(shape[0], shape[1], dtype=dtype)
    codes, expected = by_definition(matrix.float().numpy())
    found = packed(matrix)
    assert found.codes.shape == (shape[0], (shape[1] + 1) // 2)
    pairs = np.stack((found.codes.numpy() >> 4, found.codes.numpy() & 15), axis=-1).reshape(shape[0], -1)
    assert np.array_equal(pairs[:, : shape[1]], codes)
    assert (pairs[:, shape[1] :] == CONSTANTS.index(0.0)).all()
    assert np.array_equal(numbers(matrix).numpy(), expected)
    assert torch.equal(numbers(matrix, dtype=torch.bfloat16), torch.from_numpy(expected).to(torch.bfloat16))


@pytest.mark.usefixtures("either_way")
def test_a_rank_has_the_numbers_of_the_whole_matrix_bit_for_bit():
    """Rows or columns divided by tensor parallel; also where neither blocks nor bytes are whole."""
    for rows, columns in [(96, 576), (600, 66), (90, 1536), (2048, 90)]:
        matrix = weights(rows, columns)
        whole = numbers(matrix)
        for tp in (2, 3):
            for rank in range(tp):
                own_rows = range(rank * rows // tp, (rank + 1) * rows // tp)
                own_columns = range(rank * columns // tp, (rank + 1) * columns // tp)
                by_rows = numbers(matrix, Part((rows, columns), own_rows, range(columns)))
                by_columns = numbers(matrix, Part((rows, columns), range(rows), own_columns))
                assert torch.equal(by_rows, whole[own_rows.start : own_rows.stop])
                assert torch.equal(by_columns, whole[:, own_columns.start : own_columns.stop])


@pytest.mark.usefixtures("either_way")
def test_rows_in_several_pieces_are_those_of_one(monkeypatch):
    matrix = weights(1300, 96)
    whole = packed(matrix)
    monkeypatch.setattr("medsft.core.engine.kernels.nf4._NUMBERS_AT_A_TIME", 20_000)
    asked = []
    part = Part((1300, 96), range(300, 1300), range(96))
    pieces = pack(part, lambda rows: (asked.append(rows.stop - rows.start), matrix[rows])[1])
    assert max(asked) * 96 <= 20_000
    assert torch.equal(pieces.codes, whole.codes[300:])
    assert torch.equal(unpack(pieces, part, torch.empty(1000, 96)), numbers(matrix)[300:])


def test_a_matrix_takes_413_bits_for_a_hundred_numbers():
    for shape in SHAPES:
        found = packed(weights(*shape))
        assert found.codes.nbytes + found.scales.nbytes + found.groups.nbytes == stored_bytes(*shape)
    assert round(8 * stored_bytes(4096, 14336) / (4096 * 14336), 2) == 4.13
    assert round(8 * stored_bytes(192, 576) / (192 * 576), 2) == 4.13


def test_numbers_are_near_what_they_were():
    matrix = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0)) * 0.02
    found, largest = numbers(matrix), matrix.abs().view(512, 16, 64).amax(-1, keepdim=True)
    half_gap = max(b - a for a, b in pairwise(CONSTANTS)) / 2
    spread = (largest.max() - largest.min()) / 508
    assert ((found - matrix).abs().view(512, 16, 64) <= half_gap * largest + spread).all()
    assert float((found - matrix).norm() / matrix.norm()) < 0.1
    # What double quantization adds is small beside what four bits cost.
    once = torch.tensor(CONSTANTS)[by_definition(matrix.numpy())[0]] * largest.repeat_interleave(64, dim=2).view(512, 1024)
    assert float((found - once).norm() / (once - matrix).norm()) < 0.05


def test_which_weights_are_quantized():
    model = replace(tiny.SMALL_MODEL, family="qwen2", num_layers=1, attention_bias=True)
    names = [name for name, _ in model.parameter_shapes()]
    chosen = [name.removeprefix("model.layers.0.") for name in names if is_quantized(name)]
    attention, mlp = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
    assert chosen == [f"self_attn.{name}.weight" for name in attention] + [f"mlp.{name}.weight" for name in mlp]
