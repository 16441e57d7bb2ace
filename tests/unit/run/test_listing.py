"""A broken run is listed with its reason, in the table, as JSON and on the screen, and the others beside it as always."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from medsft.cli.app import app
from medsft.core.run.events import EventWriter
from medsft.core.run.listing import BROKEN, list_runs, look
from medsft.core.run.rundir import RunDir
from medsft.errors import ConfigError
from medsft.tui.screens.runs import Scanner

NAME = "llama-7b-tp1-pp1-base-broken"
GOOD = "llama-7b-tp1-pp1-base-good"


def make_run(folder: Path) -> RunDir:
    run = RunDir(folder)
    run.create("{}")
    writer = EventWriter(run.events_path)
    writer.write("run_started", iteration=0, total=10)
    writer.write("step", iteration=3, total=10, loss=1.5, tokens=7)
    writer.close()
    return run


def garbage_plan(path: Path) -> None:
    make_run(path).plan_path.write_text("{garbage")


def binary_plan(path: Path) -> None:
    make_run(path).plan_path.write_bytes(b"\xff\xfe\x00")


def list_for_plan(path: Path) -> None:
    make_run(path).plan_path.write_text("[1]")


def folder_for_plan(path: Path) -> None:
    (path / "plan.json").mkdir(parents=True)


def no_plan(path: Path) -> None:
    path.mkdir(parents=True)


def garbage_events(path: Path) -> None:
    make_run(path).events_path.write_bytes(b"\x00\xffgarbage\n" * 50)


def folder_for_events(path: Path) -> None:
    run = make_run(path)
    run.events_path.unlink()
    run.events_path.mkdir()


def file_for_folder(path: Path) -> None:
    path.write_text("not a folder")


def endless_link(path: Path) -> None:
    path.symlink_to(path)


def link_to_nothing(path: Path) -> None:
    path.symlink_to(path.with_name("gone"))


CASES: dict[Callable[[Path], None], str] = {
    garbage_plan: "damaged",
    binary_plan: "damaged",
    list_for_plan: "plan.json: damaged: not an object",
    folder_for_plan: "plan.json: cannot be read: Is a directory",
    no_plan: "no plan.json",
    garbage_events: "no event can be read in events.jsonl",
    folder_for_events: "events.jsonl: cannot be read: Is a directory",
    file_for_folder: "it is a file, not a folder",
    endless_link: "Too many levels of symbolic links",
    link_to_nothing: "its link leads to nothing",
}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    make_run(tmp_path / "runs" / GOOD)
    (tmp_path / "runs" / f"{GOOD}.rehearsal.json").write_text("{}")
    (tmp_path / "runs" / "llama-7b-hf-base-good").mkdir()
    return tmp_path / "runs"


@pytest.mark.parametrize("break_it", CASES, ids=lambda case: case.__name__)
def test_a_broken_run_hides_no_other(runs: Path, break_it: Callable[[Path], None]) -> None:
    break_it(runs / NAME)
    rows = {run.path.name: look(run) for run in list_runs(runs)}
    assert set(rows) == {GOOD, NAME}
    assert (rows[GOOD].state, rows[GOOD].view.last("loss"), rows[GOOD].problem) == ("lost", 1.5, "")
    assert rows[NAME].state == BROKEN
    assert CASES[break_it] in rows[NAME].problem

    listed = CliRunner().invoke(app, ["runs", "--plain", "--save_checkpoint_dir", str(runs)])
    assert listed.exit_code == 0
    assert re.search(f"{GOOD} +lost", listed.stdout)
    assert f"{NAME} is broken: {rows[NAME].problem}" in listed.stderr
    found = json.loads(CliRunner().invoke(app, ["runs", "--json", "--sizes", "--save_checkpoint_dir", str(runs)]).stdout)
    assert {row["name"]: row["state"] for row in found} == {GOOD: "lost", NAME: BROKEN}

    scanner = Scanner(runs, lambda: 0.0)
    for _ in range(2):
        assert {row.run.path.name: row.state for row in scanner.look()} == {GOOD: "lost", NAME: BROKEN}


@pytest.mark.parametrize("command", ["watch", "stop", "resume"])
@pytest.mark.parametrize("break_it", CASES, ids=lambda case: case.__name__)
def test_commands_say_what_is_wrong_with_it(runs: Path, break_it: Callable[[Path], None], command: str) -> None:
    break_it(runs / NAME)
    result = CliRunner().invoke(app, [command, NAME, "--save_checkpoint_dir", str(runs)])
    assert "a bug in medsft" not in result.stderr
    assert result.exit_code in ((0, 2, 4, 5) if command == "watch" else (2, 4, 5)), result.stderr


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root reads everything, so the system's refusal is made up."""
    make_run(tmp_path / GOOD)
    make_run(tmp_path / NAME)

    listed = Path.iterdir

    def refuse(path: Path) -> Iterator[Path]:
        if path.name == NAME:
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert {run.path.name: look(run).problem for run in list_runs(tmp_path)} == {
        GOOD: "",
        NAME: "it cannot be read: Permission denied",
    }


def test_a_file_for_the_folder_of_runs(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(ConfigError, match=r"--save_checkpoint_dir: .*Not a directory"):
        list_runs(tmp_path / "runs")
    assert list_runs(tmp_path / "none") == []


def test_events_with_other_fields_are_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / GOOD)
    bad: list[dict[str, Any]] = [
        {"kind": "eval"},
        {"kind": "eval", "iteration": 3, "loss": [1]},
        {"kind": "step", "iteration": "x", "loss": 1.0},
        {"kind": "step", "iteration": 4, "total": 10, "loss": "low", "tokens": 1},
        {"kind": "checkpoint", "iteration": None},
        {"kind": "run_started", "iteration": {}},
        {"kind": "step", "iteration": 10**30, "loss": 1.0},
    ]
    with run.events_path.open("a") as file:
        for number, event in enumerate(bad):
            file.write(json.dumps({"v": 1, "seq": 10 + number, "time": 5.0, **event}) + "\n")
        file.write(
            json.dumps({"v": 1, "seq": 99, "time": 6.0, "kind": "step", "iteration": 5, "loss": 0.5, "tokens": 2}) + "\n"
        )
    view = run.view()
    assert list(view.steps) == [3, 5]
    assert list(view.series["loss"]) == [1.5, 0.5]
    assert (view.tokens, list(view.eval_steps)) == (9, [])
    assert all(len(values) == 2 for values in view.series.values())
