"""Validation before the first iteration, at each epoch's end and between: where it was planned, once each, changing nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from medsft.core.engine.commands.model_card import model_card
from medsft.core.files import unsealed
from medsft.core.run.events import EventReader
from medsft.core.run.rundir import RunDir
from medsft.core.workflow import prepare

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(240)]
WHEN = [0, 3, 5, 6]
"""Of 6 iterations of 8 documents: the interval of 3, and the end of the first epoch of 40."""


def losses(events):
    return tiny.series(events, "step", "iteration", "loss", "grad_norm")


def evals(events):
    return tiny.series(events, "eval", "iteration", "loss", "accuracy", "tokens")


@pytest.mark.parametrize("layout", [(1, 1, 1), (1, 2, 1), (2, 1, 1)], ids=str)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_runs_where_planned_and_changes_nothing(tmp_path, layout, precision):
    config, settings = tiny.project(tmp_path)
    pp, dp, tp = layout
    config = replace(config, pp=pp, tp=tp, nproc_per_node=pp * dp * tp, precision=precision)
    events = tiny.train(prepare(config, settings))
    found = evals(events)
    assert [int(value[0]) for value in found] == WHEN
    assert found[0][1] > found[-1][1], "the base model has learnt nothing yet"
    assert len({value[3] for value in found}) == 1
    if pp == 1:  # the streams of a pipeline are as long as the longest of both sets
        alone = tiny.train(prepare(replace(config, run_name="alone", val=()), settings))
        assert losses(alone) == losses(events)
        assert evals(alone) == []


def test_more_ranks_than_documents(tmp_path):
    """A rank without a document takes part in everything, and the losses are those of one process."""
    config, settings = tiny.project(tmp_path, rows=3)
    config = replace(config, iters=None, epochs=2)
    one = tiny.train(prepare(replace(config, save_checkpoint_dir=tmp_path / "one"), settings))
    four = tiny.train(prepare(replace(config, nproc_per_node=4, tp=1, pp=1), settings))
    assert [int(step[0]) for step in losses(one)] == [1, 2]
    for alone, together in zip(losses(one), losses(four), strict=True):
        assert together == pytest.approx(alone, rel=1e-4, abs=1e-4)
    assert [int(value[0]) for value in evals(four)] == [0, 1, 2]


def test_a_resume_validates_what_is_left_and_the_same_again(tmp_path):
    config, settings = tiny.project(tmp_path)
    plan = prepare(replace(config, save_interval=4, keep_last=0), settings)
    straight = tiny.train(plan)
    run = RunDir(Path(plan.run_dir))
    tiny.go_back_to(run, 4)
    again = tiny.train(plan)[len(straight) :]
    assert evals(again) == evals(straight)[2:]
    assert losses(again) == losses(straight)[4:]
    assert list(run.view().eval_steps) == WHEN


@pytest.mark.parametrize("validated", [True, False])
def test_a_run_that_begins_again_validates_the_base_model_once(tmp_path, validated):
    """Killed before its first checkpoint; with `validated` after that validation, else during it."""
    config, settings = tiny.project(tmp_path)
    plan = prepare(config, settings)
    straight = tiny.train(plan)
    run = RunDir(Path(plan.run_dir))
    tiny.go_back_to(run, 0)
    lines = run.events_path.read_text().splitlines(keepends=True)
    end = next(n for n, line in enumerate(lines) if json.loads(line)["kind"] == ("step" if validated else "eval"))
    run.events_path.write_text("".join(lines[:end]))
    tiny.train(plan)
    events = EventReader(run.events_path).read()
    assert evals(events) == evals(straight)
    assert losses(events) == losses(straight)
    assert list(run.view().eval_steps) == WHEN


def test_the_model_card_says_before_and_after(tmp_path):
    config, settings = tiny.project(tmp_path)
    plan = prepare(config, settings)
    found = evals(tiny.train(plan))
    card = model_card(plan, RunDir(Path(plan.run_dir)).view(), plan.num_iterations)
    assert f"| Validation | loss {found[-1][1]:.4f}" in card
    assert f"| Validation of the base model | loss {found[0][1]:.4f}" in card


def test_a_run_of_version_0_1_0_ends_as_it_was_planned(tmp_path):
    """The plan of a stopped run decides: 5 iterations of 64 documents where 1 of 40 would be planned now."""
    config, settings = tiny.project(tmp_path)
    config = replace(config, iters=None, epochs=1, global_batch=64, eval_interval=None, save_interval=2, keep_last=0)
    new = prepare(config, settings)
    raw = unsealed(new.to_json()) | {"num_iterations": 5, "epochs": 8.0}  # that version did not seal its plans
    assert (new.num_iterations, new.global_batch) == (1, 40)
    del raw["global_batch"], raw["eval_interval"]
    raw["config"]["eval_interval"] = 100
    run = RunDir(Path(new.run_dir))
    run.create(json.dumps(raw))
    plan = prepare(config, settings)
    assert (plan.num_iterations, plan.global_batch) == (5, 64)
    straight = tiny.train(plan)
    assert [int(step[0]) for step in losses(straight)] == [1, 2, 3, 4, 5]
    tiny.go_back_to(run, 2)
    again = tiny.train(prepare(config, settings))[len(straight) :]
    assert losses(again) == losses(straight)[2:]
    assert evals(again) == evals(straight)[3:]
