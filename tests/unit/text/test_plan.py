"""The rows of a plan are the same in `medsft plan` and in the wizard."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from asked import write_medqa
from rich.console import Console

from medsft.cli import console, plan_table
from medsft.core.evaluation.tasks.of_run import plan_run
from medsft.core.planning import planner
from medsft.core.planning.plan import RunPlan
from medsft.core.planning.planner import make_plan
from medsft.core.text.plan import plan_rows
from medsft.core.workflow import tokenize_sets
from medsft.tui.wizard import backend, plan_text
from medsft.tui.wizard.paths import near


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A project with tokenized sets; weights are not looked into."""
    monkeypatch.setattr(planner, "find_devices", lambda: tiny.LAPTOP)
    monkeypatch.chdir(tmp_path)
    config, settings = tiny.plannable(Path(), global_batch=8)
    tokenize_sets(config, settings)
    return config, settings


def rows(plan: RunPlan) -> dict[str, str]:
    return {row.label: row.text for row in plan_rows(plan, None, 1 << 30)}


def test_both_front_ends_show_the_same(made, capsys, monkeypatch):
    config, settings = made
    monkeypatch.setattr("medsft.core.planning.folders.free_bytes", lambda _: 1 << 30)
    monkeypatch.setattr(console, "result_console", lambda: Console(highlight=False, soft_wrap=True, width=10_000))
    plan = make_plan(config, settings)
    plan_table.print_plan(plan)
    printed = [tuple(part.strip() for part in line.split("  ", 1)) for line in capsys.readouterr().out.splitlines()]
    seen = backend.look_ahead(config, None, samples=False)
    shortened = {path: str(near(Path(path))) for path in (plan.run_dir, plan.export_dir)}
    in_wizard = [(row.label, row.text) for row in plan_text.rows_of(seen)]
    written = [(label, value.replace(plan.base.path, str(near(Path(plan.base.path))))) for label, value in printed]
    assert [(label, shortened.get(value, value)) for label, value in written] == in_wizard


def test_both_show_the_benchmarks_of_a_run_file(made, tmp_path):
    """And the wizard says what is wrong with them before the start."""
    config, settings = made
    path = write_medqa(tmp_path / "medqa.jsonl", 6)
    config = replace(config, eval_task=(f"medqa={path}", "mine=medqa.jsonl"), eval_limit=4)
    seen = backend.look_ahead(config, None, samples=False)
    assert seen.plan is not None
    assert seen.problems == ()
    assert seen.plan.tasks == plan_run(config, settings, ahead=True).tasks
    assert [row.value[:22] for row in plan_text.rows_of(seen) if "of 6 questions" in row.value] == [
        "medqa: 4 of 6 question",
        "mine: 4 of 6 questions",
    ]
    write_medqa(path, 9)
    again = backend.look_ahead(config, None, samples=False)
    assert "4 of 9 questions" in rows(again.plan)["benchmark"]
    for written, said in (("", "holds no row"), ('{"question": "Which?", "answer": "Zinc"}\n', "no rows of MedQA")):
        path.write_text(written)
        wrong = backend.look_ahead(config, None, samples=False)
        assert wrong.plan is not None
        assert [(problem.where, said in problem.message) for problem in wrong.problems] == [("--eval_task", True)]


def test_when_it_validates(made):
    config, settings = made
    planned = rows(make_plan(config, settings))
    assert planned["validations"] == "8 (before the first, every 3 iterations, after each epoch, after the last)"
    compat = replace(config, compat="megatron-llm")
    assert rows(make_plan(compat, settings))["validations"] == "1 (every 100 iterations, after the last)"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"save_interval": 800}, "1, 1.0 GiB each (after the last iteration)"),
        ({"save_interval": 1, "keep_last": 0}, "12, 1.0 GiB each (after each iteration)"),
        ({"save_interval": 5}, "3, 1.0 GiB each (one every 5 iterations and after the last, the latest 2 are kept)"),
    ],
)
def test_how_many_checkpoints_it_saves(made, changes, words):
    config, settings = made
    plan = make_plan(replace(config, iters=12, keep_best="none", **changes), settings)
    sized = replace(plan, estimates=replace(plan.estimates, checkpoint_bytes=1 << 30))
    assert rows(sized)["checkpoints"] == words
    best = replace(sized, config=replace(sized.config, keep_best="loss"))
    assert rows(best)["checkpoints"] == f"{words[:-1]}, and the best on the validation set is saved and kept)"
