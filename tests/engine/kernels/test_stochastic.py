"""Stochastic rounding to bf16: unbiased, to a neighbor, and with the same bits whoever holds which part of a weight."""

from __future__ import annotations

import pytest
import torch

from medsft.core.engine.kernels.stochastic import random_bits, round_to_bf16

CPU = torch.device("cpu")


def rounded(numbers, *, seed=1, iteration=1, name="w", first=(0, 0)):
    rows, columns = numbers.shape
    bits = random_bits(seed, iteration, name, rows=(first[0], rows), columns=(first[1], columns), device=CPU)
    return round_to_bf16(numbers, *bits)


def numbers(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02


def test_the_mean_over_many_iterations_is_the_number():
    matrix, draws = numbers(16, 64), 1000
    total = torch.zeros(16, 64, dtype=torch.float64)
    for iteration in range(draws):
        total += rounded(matrix, iteration=iteration).double()
    below = (matrix.view(torch.int32) & -65536).view(torch.float32)
    step = ((below.view(torch.int32) + 65536).view(torch.float32) - below).double()
    share = (matrix.double() - below.double()) / step  # the probability of the number farther from 0
    deviations = (total / draws - matrix.double()) / step / (share * (1 - share) / draws).sqrt().clamp_min(1e-4)
    assert deviations.abs().max() < 5  # of 1,024 means
    assert deviations.mean().abs() < 4 / 32
    assert 0.9 < deviations.square().mean() < 1.1


def test_the_mean_over_a_large_matrix_is_the_number():
    for value in (1 + 1 / 512, 1 + 1 / 2048, -0.3, 1e-5):
        matrix = torch.full((512, 512), value)
        found = rounded(matrix).double()
        below, above = found.min().item(), found.max().item()
        share = (value - below) / (above - below)
        counted = (found == above).double().mean().item()
        assert counted == pytest.approx(share, abs=5 * (share * (1 - share) / matrix.numel()) ** 0.5)
        assert len(found.unique()) == 2


def test_a_number_of_bf16_stays_and_others_go_to_a_neighbor():
    exact = numbers(64, 128).bfloat16()
    assert torch.equal(rounded(exact.float()), exact)
    assert torch.equal(rounded(torch.zeros(2, 3)), torch.zeros(2, 3, dtype=torch.bfloat16))
    matrix = numbers(64, 128, 1)
    away = (rounded(matrix).double() - matrix.double()).abs()
    assert torch.all(away < matrix.double().abs() / 128)


def test_every_part_of_a_weight_is_rounded_as_the_whole():
    matrix = numbers(24, 40)
    whole = rounded(matrix)
    for rows, columns in ((slice(6, 12), slice(0, 40)), (slice(0, 24), slice(20, 40)), (slice(5, 7), slice(13, 14))):
        part = rounded(matrix[rows, columns].contiguous(), first=(rows.start, columns.start))
        assert torch.equal(part, whole[rows, columns])


def test_other_seeds_iterations_and_weights_have_other_bits():
    matrix = torch.full((128, 128), 1 + 1 / 256)  # halfway between two numbers of bf16
    first = (rounded(matrix) > 1).double() - 0.5
    for other in (rounded(matrix, seed=2), rounded(matrix, iteration=2), rounded(matrix, name="v")):
        assert abs(float((first * ((other > 1).double() - 0.5)).mean())) * 4 < 4 / 128
    for shift, dim in ((1, 0), (1, 1), (64, 0)):  # nor do neighbors tell of one another
        assert abs(float((first * first.roll(shift, dim)).mean())) * 4 < 4 / 128
