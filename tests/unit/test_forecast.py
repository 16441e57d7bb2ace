"""How long a run will take: one computation for the command line and the wizard, with what it is made from."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import tiny
from rich.console import Console

from medsft.cli import console, plan_table
from medsft.core.forecast import forecast
from medsft.core.planning import planner
from medsft.core.planning.plan import RunPlan
from medsft.core.planning.planner import make_plan
from medsft.core.rehearsal import Rehearsal
from medsft.core.run.events import EventWriter
from medsft.core.run.rundir import RunDir
from medsft.core.text.plan import time_row
from medsft.core.workflow import tokenize_sets
from medsft.tui.wizard import backend, plan_text


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A project with tokenized sets; weights are not looked into."""
    monkeypatch.setattr(planner, "find_devices", lambda: tiny.LAPTOP)
    monkeypatch.chdir(tmp_path)
    config, settings = tiny.plannable(Path(), global_batch=8)
    tokenize_sets(config, settings)
    return config, settings


def earlier_run(plan: RunPlan, name: str, *speeds: float) -> None:
    run = RunDir(Path("runs") / name)
    run.create(plan.to_json())
    writer = EventWriter(run.events_path)
    for number, speed in enumerate(speeds, start=1):
        writer.write("step", iteration=number, total=9, loss=1.0, tokens=1, tokens_per_second=speed)
    writer.close()


def shown(plan: RunPlan, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(console, "result_console", lambda: Console(highlight=False, soft_wrap=True, width=10_000))
    plan_table.print_plan(plan)
    return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("time")).split("  ", 1)[1]


def test_by_the_speed_of_an_earlier_run(made, capsys, monkeypatch):
    config, settings = made
    plan = make_plan(config, settings)
    assert forecast(plan) is None
    assert "`medsft rehearse` measures it" in shown(plan, capsys, monkeypatch)
    earlier_run(make_plan(replace(config, tp=2), settings), "llama-0.001b-tp2-pp1-tiny-other", 9.0)
    (Path("runs") / "llama-0.001b-tp1-pp1-tiny-broken").symlink_to("llama-0.001b-tp1-pp1-tiny-broken")
    assert forecast(plan) is None, "tensor parallel has another speed"
    earlier_run(plan, "llama-0.001b-tp1-pp1-tiny-same", 1.0, 50.0, 60.0, 0.0)
    guess = forecast(plan)
    assert guess is not None
    tokens = plan.train.labels * plan.epochs + plan.val.labels * plan.num_validations / 3
    assert guess.seconds == pytest.approx(tokens / 50.0)
    assert guess.basis == "at the 50 tokens/s of llama-0.001b-tp1-pp1-tiny-same"
    seen = backend.look_ahead(config, None, samples=False)
    assert seen.forecast == guess
    in_wizard = next(row.text for row in plan_text.rows_of(seen) if row.label == "time")
    assert shown(plan, capsys, monkeypatch).strip() == in_wizard == time_row(guess).text
    assert in_wizard.startswith("about ")


def test_a_rehearsal_knows_better(made):
    config, settings = made
    plan = make_plan(config, settings)
    earlier_run(plan, "llama-0.001b-tp1-pp1-tiny-same", 50.0)
    numbers = dict.fromkeys(Rehearsal.__dataclass_fields__, 1)
    rehearsal = Rehearsal(**{**numbers, "identity": plan.identity, "resumes": (), "forecast_seconds": 77.0})  # type: ignore[arg-type]
    RunDir(Path(plan.run_dir)).rehearsal_path.write_text(json.dumps(asdict(rehearsal)))
    guess = forecast(plan)
    assert guess is not None
    assert (guess.seconds, guess.basis) == (77.0, "as its rehearsal measured")
