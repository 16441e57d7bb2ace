"""Names, paths, rows, logs and messages from elsewhere are drawn as text: they steer nothing and are no markup."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from textual.widgets import DataTable, DirectoryTree
from typer.testing import CliRunner

from medsft.cli.app import app as app_of_commands
from medsft.core.run.events import Event
from medsft.core.run.rundir import RunDir
from medsft.errors import ExitCode
from medsft.tui.app import MedsftApp
from medsft.tui.screens.compare import CompareScreen
from medsft.tui.widgets.dialogs import Confirm, TextDialog
from medsft.tui.wizard.paths import FilePicker, complete

STEERS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
HOSTILE = "[/x][red]\x1b]0;own\x07\x1b[2J\x9b31m\u202egnp\u2066"
LITERAL = "[/x][red]␛]0;own␇␛[2J�31m�gnp�"
NOW = 1_764_000_000.0


def drawn(app: MedsftApp) -> str:
    """Return what stands on the screen, line by line, as it would be written to the terminal."""
    strips = app.screen._compositor.render_strips()
    lines = ["".join(segment.text for segment in strip if not segment.control) for strip in strips]
    assert not any(STEERS.search(line) for line in lines), [line for line in lines if STEERS.search(line)]
    return "\n".join(lines)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[RunDir]:
    monkeypatch.chdir(tmp_path)
    made = []
    for name, reason in ((f"a{HOSTILE}", HOSTILE), ("b", "plain")):
        run = RunDir(Path("runs") / name.replace("/", "∕"))
        run.create(json.dumps({"format": 0}))
        events = [
            Event(0, NOW - 9, "run_started", {"iteration": 0, "total": 3}),
            Event(1, NOW - 8, "step", {"iteration": 1, "total": 3, "loss": 1.0, "eta_seconds": 5}),
            Event(2, NOW - 7, "phase", {"name": HOSTILE}),
            Event(3, NOW - 6, "warning", {"message": HOSTILE}),
            Event(4, NOW - 5, "failed", {"reason": reason, "remedy": HOSTILE, "exit_code": 6}),
        ]
        run.events_path.write_text("".join(event.to_line() for event in events))
        (run.logs / f"rank{HOSTILE.replace('/', '∕')}.log").write_text(f"first {HOSTILE}\n", encoding="utf-8")
        made.append(run)
    return made


async def test_the_monitor_draws_text(runs, until):
    app = MedsftApp("monitor", run=runs[0], clock=lambda: NOW)
    async with app.run_test(size=(200, 60), notifications=True) as pilot:
        await until(pilot, lambda: app.screen.snapshot)
        await until(pilot, lambda: "first" in drawn(app))
        for text in (f"Failed: {LITERAL}", "6 s ago: [/x][red]␛]0;", f"first {LITERAL}"):
            assert text in drawn(app)
        await pilot.press("y")
        await until(pilot, lambda: "Copied" in drawn(app))
        assert not STEERS.search(app.clipboard)
        await pilot.press("b")
        await until(pilot, lambda: "No samples" in drawn(app))


async def test_the_list_of_runs_and_their_comparison_draw_text(runs, until):
    app = MedsftApp("runs", runs_folder=Path("runs"), clock=lambda: NOW)
    name = "a" + LITERAL.replace("/", "∕")
    async with app.run_test(size=(160, 40)) as pilot:
        await until(pilot, lambda: app.screen.query_one(DataTable).row_count == 2)
        await until(pilot, lambda: drawn(app).count(name) == 2)
        await pilot.press("m", "down", "m")
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        drawn(app)
        await pilot.press("n", "up", "d")
        await until(pilot, lambda: isinstance(app.screen, Confirm) and name in drawn(app))
        await pilot.press("n", "c")
        await until(pilot, lambda: isinstance(app.screen, CompareScreen))
        await until(pilot, lambda: name in drawn(app))


async def test_the_wizard_draws_text(project, until):
    folder = project / "m" / "[v2]" / f"b{HOSTILE.replace('/', '∕')}"
    folder.parent.mkdir(parents=True)
    (project / "base").rename(folder)
    (project / "medsft.toml").write_text(f"[checkpoints.tiny]\n0.02 = {json.dumps(str(folder))}\n")
    rows = project / f"rows{HOSTILE.replace('/', '∕')}.jsonl"
    key = f"k{HOSTILE}"
    rows.write_text("".join(json.dumps({"input": f"w1 {HOSTILE}", "output": "w2", key: "w3"}) + "\n" for _ in range(20)))
    texts = {"data": f"'{rows.name}'", "run_name": "r", "system_key": key, "checkpoint": "tiny", "size": "0.02"}
    (project / "state" / "medsft").mkdir(parents=True)
    (project / "state" / "medsft" / "draft.json").write_text(json.dumps({"texts": texts, "page": 0}))
    app = MedsftApp("wizard", settings_file=Path("medsft.toml"), clock=lambda: NOW)
    async with app.run_test(size=(200, 60), notifications=True) as pilot:
        await until(pilot, lambda: "m/[v2]/b[∕x][red]␛]0" in drawn(app))
        for page in range(1, 6):
            await pilot.press("pagedown")
            await until(pilot, lambda page=page: app.screen.page == page and app.screen._current().filled)
            await until(pilot, lambda: app.screen.state.outlook is not None)
            await pilot.pause(0.5)
            drawn(app)
        assert "m/[v2]/b[∕x][red]␛]0" in drawn(app)
        app.screen.page = 1
        await until(pilot, lambda: app.screen.state.outlook.samples)
        await pilot.press("escape", "v")
        await until(pilot, lambda: isinstance(app.screen, TextDialog))
        await until(pilot, lambda: f"w1 {LITERAL}" in drawn(app))
        await pilot.press("escape")
        await pilot.press("f")
        await until(pilot, lambda: isinstance(app.screen, FilePicker))
        await until(pilot, lambda: "rows[∕x][red]␛]0" in drawn(app).split("marked")[0])
        assert app.screen.query_one(DirectoryTree)
        assert "rows[∕x]" in drawn(app).split("marked: ")[1]
        await pilot.press("escape")
        app.screen.notify(f"{HOSTILE} told", title="Title")
        await until(pilot, lambda: "told" in drawn(app))


def test_a_name_that_steers_is_not_completed(tmp_path: Path) -> None:
    (tmp_path / "rows\x1b.jsonl").touch()
    assert complete(f"{tmp_path}/ro", (".jsonl",)) is None
    (tmp_path / "rows.jsonl").touch()
    assert complete(f"{tmp_path}/ro", (".jsonl",)) == f"{tmp_path}/rows.jsonl"


@pytest.mark.parametrize("place", ["compose", "scan"])  # in the app itself, and in a thread of it
def test_a_bug_in_a_screen_ends_like_any_other(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    secret = "PATIENT-NAME-IN-A-RECORD"

    def fail(*_: object) -> None:
        row = secret
        raise KeyError(row)

    target = {"compose": "medsft.tui.screens.runs.RunsScreen.on_mount", "scan": "medsft.tui.screens.runs.Scanner.look"}[place]
    monkeypatch.setattr(target, fail)
    run = MedsftApp.run
    monkeypatch.setattr(MedsftApp, "run", lambda self: run(self, headless=True, size=(80, 24)))
    monkeypatch.setenv("TEXTUAL_DRIVER", "textual.drivers.headless_driver:HeadlessDriver")
    result = CliRunner().invoke(app_of_commands, ["runs"])
    assert result.exit_code == ExitCode.TRAINING
    assert "this is a bug in medsft: KeyError at test_hostile_text.py" in result.output
    assert secret not in result.output
