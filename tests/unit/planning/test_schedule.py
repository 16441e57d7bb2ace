"""Numbers of iterations and learning rates, against the original's."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from medsft.core.config import RunConfig
from medsft.core.planning.schedule import learning_rate, plan_iterations

CONFIG = RunConfig(run_name="x", lr=2e-5, min_lr=2e-6, warmup_fraction=0.1)
COMPAT = replace(CONFIG, compat="megatron-llm")


@pytest.mark.parametrize(
    ("documents", "iterations"),
    [
        (159669, 7490),
        (182822, 8570),
        (10178, 480),
        (8204, 390),
        (200000, 9380),
        (193450, 9070),
        (369847, 17340),
        (359669, 16860),
    ],
    ids=["medmcqa", "cotmedmcqa", "medqa", "cotmedqa", "pubmedqa", "mixed", "mixedmed", "cotmixedmed"],
)
def test_iterations_of_the_original(documents, iterations):
    assert plan_iterations(documents, 3, 64) == iterations


@pytest.mark.parametrize(("documents", "epochs", "batch", "iterations"), [(1, 1, 64, 10), (640, 1, 64, 10), (641, 1, 64, 20)])
def test_iterations_are_rounded_up(documents, epochs, batch, iterations):
    assert plan_iterations(documents, epochs, batch) == iterations


def test_warm_up_ends_at_the_highest_rate():
    assert learning_rate(CONFIG, 10, 100) == CONFIG.lr
    assert learning_rate(CONFIG, 5, 100) == pytest.approx(CONFIG.lr / 2)
    assert learning_rate(CONFIG, 1, 100) == pytest.approx(CONFIG.lr / 10)


def test_the_last_iteration_has_the_lowest_rate():
    assert learning_rate(CONFIG, 100, 100) == pytest.approx(CONFIG.min_lr)
    assert learning_rate(CONFIG, 101, 100) == CONFIG.min_lr


def test_the_cosine_is_half_way_in_the_middle():
    assert learning_rate(CONFIG, 55, 100) == pytest.approx((CONFIG.lr + CONFIG.min_lr) / 2)


def test_it_rises_and_then_falls():
    rates = [learning_rate(CONFIG, iteration, 200) for iteration in range(1, 201)]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_the_original_counts_from_zero():
    assert learning_rate(COMPAT, 1, 100) == 0
    assert learning_rate(COMPAT, 11, 100) == COMPAT.lr
    progress = (99 - 10) / 90
    last = COMPAT.min_lr + 0.5 * (COMPAT.lr - COMPAT.min_lr) * (1 + math.cos(math.pi * progress))
    assert learning_rate(COMPAT, 100, 100) == pytest.approx(last)
    assert last > COMPAT.min_lr


def test_no_warm_up():
    assert learning_rate(replace(CONFIG, warmup_fraction=0.0), 1, 100) < CONFIG.lr
    assert learning_rate(replace(COMPAT, warmup_fraction=0.0), 1, 100) == CONFIG.lr
