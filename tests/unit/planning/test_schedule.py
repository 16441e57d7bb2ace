"""Numbers of iterations and learning rates, against the original's."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from medsft.core.config.run_config import RunConfig
from medsft.core.planning.schedule import (
    epoch_ends,
    learning_rate,
    most_kept,
    most_saves,
    plan_eval_interval,
    plan_global_batch,
    plan_iterations,
)

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
    assert plan_iterations(COMPAT, documents, 64) == iterations


@pytest.mark.parametrize(("documents", "iterations"), [(1, 10), (640, 10), (641, 20)])
def test_the_original_rounds_up_to_a_multiple_of_ten(documents, iterations):
    assert plan_iterations(replace(COMPAT, epochs=1), documents, 64) == iterations


@pytest.mark.parametrize(
    ("documents", "epochs", "typed", "batch", "iterations"),
    [
        (3, 1, 64, 3, 1),
        (3, 3, 64, 3, 3),
        (1, 0.1, 64, 1, 1),
        (40, 3, 64, 40, 3),
        (40, 3, 8, 8, 15),
        (320, 0.5, 64, 64, 3),
        (640, 1, 64, 64, 10),
        (640, 1.1, 64, 64, 11),  # in binary, 1.1 * 640 / 64 is above 11
        (700, 0.1, 7, 7, 10),
        (641, 1, 64, 64, 11),
        (193450, 3, 64, 64, 9068),
    ],
)
def test_iterations_are_those_of_the_epochs(documents, epochs, typed, batch, iterations):
    config = replace(CONFIG, epochs=epochs, global_batch=typed)
    assert plan_global_batch(config, documents) == batch
    assert plan_iterations(config, documents, batch) == iterations


def test_iterations_that_were_asked_for():
    assert plan_iterations(replace(CONFIG, iters=7), 640, 64) == 7
    assert plan_iterations(replace(CONFIG, epochs=1, max_iters=4), 640, 64) == 4
    assert plan_iterations(replace(CONFIG, epochs=1, max_iters=40), 640, 64) == 10
    assert plan_iterations(replace(CONFIG, iters=7, max_iters=4), 640, 64) == 4


@pytest.mark.parametrize("iterations", [*range(1, 300), 499, 500, 501, 10_000])
def test_a_short_run_has_five_validations(iterations):
    interval = plan_eval_interval(CONFIG, iterations)
    assert interval == 100 or iterations < 500
    assert iterations // interval >= min(5, iterations)
    assert plan_eval_interval(replace(CONFIG, eval_interval=9), iterations) == 9
    assert plan_eval_interval(COMPAT, iterations) == 100


def test_ends_of_epochs():
    assert epoch_ends(40, 8, 15) == {5, 10, 15}
    assert epoch_ends(41, 8, 16) == {6, 11, 16}
    assert epoch_ends(40, 8, 4) == set()
    assert epoch_ends(40, 64, 2) == {1, 2}
    assert epoch_ends(3, 3, 1000) == set()


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


@pytest.mark.parametrize(
    ("changes", "iterations", "eval_interval", "ends", "saves", "kept"),
    [
        ({"save_interval": 800}, 100, None, {50, 100}, 1, 1),
        ({"save_interval": 800, "keep_best": "none"}, 100, 20, {50, 100}, 1, 1),
        ({"save_interval": 800}, 100, 20, {50, 100}, 6, 4),  # 20, 40, 50, 60, 80, 100
        ({"save_interval": 800}, 100, 100, {100}, 1, 1),
        ({"save_interval": 800, "keep_last": 0}, 100, 20, {50, 100}, 6, 6),
        ({"save_interval": 30, "keep_last": 1}, 100, 20, {50, 100}, 8, 3),  # 60 is both
        ({"save_interval": 800, "compat": "megatron-llm"}, 100, 20, {50, 100}, 1, 1),
        ({"save_interval": 10}, 10**12, 15, {7}, 10**11 + (10**12 - 1) // 15 - (10**12 - 1) // 30 + 1, 4),
    ],
)
def test_checkpoints_where_each_validation_is_better(changes, iterations, eval_interval, ends, saves, kept):
    config = replace(CONFIG, **changes)
    facts = {"eval_interval": eval_interval, "ends": frozenset(ends)}
    assert most_saves(config, iterations, **facts) == saves
    assert most_kept(config, iterations, **facts) == kept
