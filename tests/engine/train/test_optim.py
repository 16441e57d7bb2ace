"""The norm that gradients are clipped by, and that layouts are compared by."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from medsft.core.engine.parallel.master_weights import MasterWeights
from medsft.core.engine.train.optim import TIED_TABLE, squared_norm, sum_of_squares, sum_of_squares_at_once

ALONE: Any = SimpleNamespace(device=torch.device("cpu"), tp_rank=0)


def masters_with(**gradients):
    masters = {}
    for name, gradient in gradients.items():
        masters[name] = torch.nn.Parameter(torch.zeros_like(gradient))
        masters[name].grad = gradient
    return MasterWeights(masters, {})


def test_the_norm_of_a_large_table_is_exact():
    table = torch.randn(40_000, 512, generator=torch.Generator().manual_seed(0)) * 1e-3
    vector = torch.linspace(-1.0, 2.0, 100)
    exact = float(table.double().square().sum() + vector.double().square().sum())
    found = squared_norm(masters_with(table=table, vector=vector), ALONE, tied_copy=False)
    assert found.item() == pytest.approx(exact, rel=1e-6)
    assert float(table.norm()) ** 2 != pytest.approx(float(table.double().square().sum()), rel=1e-5)  # what it is for


def test_a_copy_of_the_tied_table_does_not_count_twice():
    masters = masters_with(**{TIED_TABLE: torch.ones(3, 4), "norm": torch.ones(4)})
    assert squared_norm(masters, ALONE, tied_copy=False).item() == 16
    assert squared_norm(masters, ALONE, tied_copy=True).item() == 4


def test_the_way_of_a_gpu_gives_the_same_norm():
    shapes = [(4000, 64), (64,), (1, 1), (0, 64), (3, 5)]
    tensors = [torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * 1e-3 for shape in shapes]
    exact = sum(float(tensor.double().square().sum()) for tensor in tensors)
    assert sum_of_squares_at_once(tensors).item() == pytest.approx(exact, rel=1e-12)
    assert sum_of_squares(tensors).item() == pytest.approx(exact, rel=1e-6)
    assert sum_of_squares_at_once(tensors).shape == sum_of_squares(tensors).shape == (1,)
