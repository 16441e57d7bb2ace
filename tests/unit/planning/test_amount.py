"""How much a plan trains: as many epochs as were asked for, and of a run that exists what it was planned with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from kept import GOLDEN

from medsft.core.config.run_config import RunConfig
from medsft.core.planning import base, planner
from medsft.core.planning.plan import RunPlan, difference
from medsft.core.planning.planner import make_plan, replan
from medsft.core.planning.selection import open_splits
from medsft.core.run.events import Event
from medsft.core.run.rundir import RunDir
from medsft.core.settings import Settings
from medsft.core.workflow import check_against_existing, prepare, tokenize_sets
from medsft.errors import AlreadyFinishedError, MismatchError

OLD_PLAN = GOLDEN / "plan-0.1.0.json"
"""Written by version 0.1.0 for the project below: 10 iterations of 64 documents, 16 epochs where 3 were asked for."""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RunConfig, Settings]:
    """The project of the old plan: a base model whose weights are not looked into, and 40 tokenized documents."""
    monkeypatch.setattr(planner, "find_devices", lambda: tiny.LAPTOP)
    # The old base's file was no safetensors, which is looked at today; the plan knows it by this alone.
    known = json.loads(OLD_PLAN.read_text())["base"]["fingerprint"]
    monkeypatch.setattr(base, "sampled_fingerprint", lambda _: known)
    config, settings = tiny.plannable(tmp_path)
    tokenize_sets(config, settings)
    return config, settings


@pytest.fixture
def old_run(project: tuple[RunConfig, Settings], tmp_path: Path) -> RunDir:
    """The folder of that run, as version 0.1.0 left it when it was stopped."""
    run = RunDir(tmp_path / "runs" / "llama-0.001b-tp1-pp1-tiny-words")
    run.create(OLD_PLAN.read_text().replace("FOLDER", str(tmp_path)))
    return run


def validations(plan: RunPlan) -> list[int]:
    found = [iteration for iteration in range(plan.num_iterations + 1) if plan.validates_after(iteration)]
    assert len(found) == plan.num_validations
    return found


@pytest.mark.parametrize("epochs", [0.5, 1.0, 3.0])
def test_fewer_rows_than_a_batch_are_seen_as_often_as_asked(project, epochs):
    config, settings = project
    plan = make_plan(replace(config, epochs=epochs), settings)
    assert (plan.num_iterations, plan.global_batch, plan.epochs) == (max(1, epochs), 40, max(1, epochs))
    assert "each iteration takes all 40 once" in "\n".join(plan.warnings)
    for iteration in range(plan.num_iterations):
        assert sorted(open_splits(plan)[0].order.batch(iteration)) == list(range(40))


def test_a_rate_that_no_fine_tuning_takes_is_named(project):
    config, settings = project
    assert "--lr 1 is unusually high" in "\n".join(make_plan(replace(config, lr=1.0), settings).warnings)
    assert "--lr" not in "\n".join(make_plan(replace(config, lr=1e-3), settings).warnings)


def test_many_more_epochs_than_asked_are_named(project):
    config, settings = project
    plan = make_plan(replace(config, epochs=1, global_batch=32), settings)
    assert (plan.num_iterations, plan.epochs) == (2, 1.6)
    assert "--epochs 1 becomes 1.6, in whole iterations of" in "\n".join(plan.warnings)
    assert make_plan(replace(config, epochs=1, global_batch=20), settings).warnings == ()


@pytest.mark.parametrize(("epochs", "global_batch", "many"), [(3, 12, False), (3, 8, False), (3.5, 8, True), (4, 40, True)])
def test_more_than_three_epochs_are_warned_of_but_not_what_whole_iterations_add(project, epochs, global_batch, many):
    config, settings = project
    plan = make_plan(replace(config, epochs=epochs, global_batch=global_batch), settings)
    assert ("mostly learn rows by heart" in "\n".join(plan.warnings)) is many


def test_the_original_fills_its_iterations_up_and_rounds_to_ten(project):
    config, settings = project
    plan = make_plan(replace(config, compat="megatron-llm"), settings)
    assert (plan.num_iterations, plan.global_batch, plan.epochs, plan.eval_interval) == (10, 64, 16.0, 100)
    assert validations(plan) == [10]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [0, 1, 2, 3]),
        ({"global_batch": 8}, [0, 3, 5, 6, 9, 10, 12, 15]),
        ({"global_batch": 8, "eval_interval": 4}, [0, 4, 5, 8, 10, 12, 15]),
        ({"global_batch": 8, "eval_interval": 1000}, [0, 5, 10, 15]),
        ({"global_batch": 1, "iters": 30}, [0, 6, 12, 18, 24, 30]),
        ({"iters": 1000, "eval_interval": 400}, [0, 400, 800, 1000]),
        ({"compat": "megatron-llm", "global_batch": 8, "iters": 250}, [100, 200, 250]),
    ],
    ids=str,
)
def test_where_a_run_validates(project, changes, expected):
    config, settings = project
    assert validations(make_plan(replace(config, **changes), settings)) == expected


def test_more_ranks_than_documents(project):
    config, settings = project
    plan = make_plan(replace(config, nproc_per_node=50, tp=1, pp=1), settings)
    assert (plan.layout.dp, plan.micro_batch, plan.num_micro_batches) == (50, 1, 1)
    assert "10 of 50 data-parallel ranks get no document" in "\n".join(plan.warnings)


def test_a_plan_of_version_0_1_0_reads_as_it_was(old_run):
    raw = old_run.read_plan()
    plan = RunPlan.from_json(raw)
    assert plan.identity == raw["identity"], "checkpoints carry it"
    assert (plan.num_iterations, plan.global_batch, plan.eval_interval) == (10, 64, 100)
    order = open_splits(plan)[0].order
    assert (order.global_batch, len(order.batch(0))) == (64, 64)


def test_the_same_command_goes_on_with_an_old_run(project, old_run):
    config, settings = project
    old = RunPlan.from_json(old_run.read_plan())
    plan = prepare(config, settings)
    assert plan.run_dir == str(old_run.path)
    assert difference(old, plan) == []
    assert (plan.num_iterations, plan.global_batch, plan.eval_interval) == (10, 64, 100)
    assert "keeps the 10 iterations of 64 documents" in "\n".join(plan.warnings)
    asked = prepare(config, settings, confirm=lambda _: pytest.fail("its number of iterations is no question any more"))
    assert asked.identity == old.identity
    assert replan(old, run_dir=old_run.path, changes={"nproc_per_node": 2}).identity == old.identity
    again = RunPlan.from_json(json.loads(plan.to_json()))
    assert again.identity == old.identity


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({"lr": 1e-3}, ["--lr: was 2e-05, now 0.001"]),
        ({"iters": 4}, ["iterations: was 10, now 4"]),
        ({"eval_interval": 7}, ["--eval_interval: was 100, now 7"]),
        ({"eval_interval": 100, "max_iters": None}, []),
    ],
    ids=str,
)
def test_only_what_was_changed_is_another_plan(project, old_run, changes, lines):
    config, settings = project
    plan = make_plan(replace(config, **changes), settings)
    assert difference(RunPlan.from_json(old_run.read_plan()), plan) == lines
    if lines:
        with pytest.raises(MismatchError, match="another plan"):
            check_against_existing(plan)


def test_a_run_that_was_confirmed_with_another_number_keeps_it(project):
    config, settings = project
    plan = prepare(config, settings, confirm=lambda planned: replace(planned.config, iters=2))
    RunDir(Path(plan.run_dir)).create(plan.to_json())
    again = prepare(config, settings, confirm=lambda _: pytest.fail("asked again"))
    assert (again.num_iterations, again.identity) == (2, plan.identity)


def test_a_finished_run_says_what_was_trained_otherwise(project):
    config, settings = project
    plan = prepare(config, settings)
    run = RunDir(Path(plan.run_dir))
    run.create(plan.to_json())
    run.events_path.write_text(Event(0, 0.0, "finished", {"iteration": 3, "export": plan.export_dir}).to_line())
    Path(plan.export_dir).mkdir()
    Path(plan.export_dir, "medsft.json").write_text(json.dumps({"plan": json.loads(plan.to_json()), "files": {}}))
    with pytest.raises(AlreadyFinishedError) as same:
        prepare(config, settings)
    assert "something else" not in same.value.message
    with pytest.raises(AlreadyFinishedError) as other:
        prepare(replace(config, lr=1e-3, iters=7), settings)
    assert other.value.message.splitlines()[1:] == [
        "It was trained with something else than is asked for now:",
        "    --lr: was 2e-05, now 0.001",
        "    iterations: was 3, now 7",
    ]
    assert "--id NAME" in other.value.hint
