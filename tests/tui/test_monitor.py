from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from textual.widgets import Input, ProgressBar

from medsft.core.config.run_config import RunConfig
from medsft.core.run.events import Event
from medsft.tui.app import MedsftApp
from medsft.tui.screens import monitor as monitor_screen
from medsft.tui.screens.runs import RunsScreen
from medsft.tui.widgets import samples
from medsft.tui.widgets.dialogs import Confirm, TextDialog
from medsft.tui.widgets.linechart import LineChart
from medsft.tui.widgets.loglines import LogLines

STATES = ("planned", "running", "stopping", "stopped", "finished", "failed", "lost")
SIZES = {"80x24": (80, 24), "120x40": (120, 40), "60x20": (60, 20)}
PICTURES = [(state, "80x24") for state in STATES] + [("running", "120x40"), ("failed", "60x20")]


@pytest.mark.parametrize(("state", "size"), PICTURES)
async def test_each_state_looks_as_before(state, size, monitor, until, same_as_before):
    app = monitor(state)
    async with app.run_test(size=SIZES[size]) as pilot:
        await until(pilot, lambda: app.screen.snapshot)
        await pilot.pause()
        await same_as_before(pilot, f"monitor-{state}-{size}")


@pytest.mark.parametrize("state", ["running", "finished", "failed"])
async def test_each_state_can_be_read_in_the_light_theme(state, monitor, until, same_as_before):
    app = monitor(state)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.screen.snapshot)
        await pilot.press("t")
        await same_as_before(pilot, f"monitor-{state}-light-80x24")


async def test_without_color_a_state_is_still_told(monitor, until, same_as_before, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    app = monitor("failed")
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.screen.snapshot)
        await same_as_before(pilot, "monitor-failed-no-color-80x24")


async def test_a_run_that_was_resumed_is_starting_until_it_says_so(make_run, until):
    run = make_run("stopped")
    run.claim(os.getpid())
    app = MedsftApp("monitor", run=run, clock=lambda: 1_764_001_000.0)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.screen.snapshot)
        assert "RUNNING" in str(app.screen.query_one("#state").render())
        assert "starting" in str(app.screen.query_one("#state").render())
        assert not app.screen.query_one("#notice").display


async def test_only_checkpoints_on_disk_are_listed(monitor, until):
    app = monitor("running")
    app._run_dir.checkpoint_path(100).rmdir()
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.screen.snapshot)
        listed = str(app.screen.query_one("#checkpoints").render())
        assert "200" in listed
        assert "100" not in listed


async def test_escape_shows_the_runs_beside_the_watched_one(monitor, until):
    app = monitor("stopped")
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.screen.snapshot)
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, RunsScreen) and app.screen.rows)


@pytest.mark.parametrize("state", STATES)
async def test_a_state_is_a_word_of_its_own(state, monitor, until):
    app = monitor(state)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.screen.snapshot)
        shown = str(app.screen.query_one("#state").render())
        assert state.upper() in shown
        assert not any(other.upper() in shown for other in STATES if other not in (state, "stop"))


async def test_new_events_appear(monitor, until):
    app = monitor("running")
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.screen.snapshot)
        line = Event(10_000, 1_764_000_000.0, "step", {"iteration": 231, "total": 400, "loss": 0.5}).to_line()
        with app.screen.run_dir.events_path.open("a") as log:
            log.write(line)
        await until(pilot, lambda: app.screen.snapshot.view.iteration == 231)
        assert app.screen.query_one(ProgressBar).progress == 231


async def test_stop_asks_and_leaves_a_request(monitor, until):
    app = monitor("running")
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.screen.snapshot)
        await pilot.press("s")
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        await pilot.press("n")
        await until(pilot, lambda: not isinstance(app.screen, Confirm))
        assert not app.screen.run_dir.requested("stop")
        await pilot.press("s")
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        await pilot.press("y")
        await until(pilot, lambda: not isinstance(app.screen, Confirm))
        await until(pilot, lambda: app.screen.state == "stopping")
        assert app.screen.run_dir.requested("stop")


async def test_save_leaves_a_request(monitor, until):
    app = monitor("running")
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.screen.snapshot)
        await pilot.press("v")
        await until(pilot, lambda: app.screen.run_dir.requested("save"))


@pytest.mark.parametrize(
    ("state", "possible"),
    [
        ("planned", {"resume"}),
        ("running", {"stop", "save"}),
        ("stopping", set()),
        ("stopped", {"resume", "export"}),
        ("finished", {"export"}),
        ("failed", {"resume", "export"}),
        ("lost", {"resume", "export"}),
    ],
)
async def test_only_what_is_possible_is_offered(state, possible, monitor, until):
    app = monitor(state)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.screen.snapshot)
        actions = ("stop", "save", "resume", "export")
        assert {a for a in actions if app.screen.check_action(a, ())} == possible


async def test_log_is_filtered_while_typing(monitor, until):
    app = monitor("running")
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.screen.snapshot and app.screen.snapshot.log)
        await pilot.press("slash", *"SLOW")
        lines = app.screen.query_one(LogLines)
        await until(pilot, lambda: len(lines.lines) == 1)
        assert "slow batch" in lines.lines[0].text
        await pilot.press("escape")
        await until(pilot, lambda: len(lines.lines) == 3)
        assert not app.screen.query_one(Input).display


async def test_samples_are_decoded_only_when_asked(monitor, until, monkeypatch):
    asked = []
    monkeypatch.setattr(samples, "current_batch", lambda run, iteration: asked.append(iteration) or [])
    monkeypatch.setattr(monitor_screen, "load_plan", lambda run: SimpleNamespace(config=RunConfig(run_name="x")))
    app = monitor("running")
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.screen.snapshot)
        assert asked == []
        await pilot.press("b")
        await until(pilot, lambda: isinstance(app.screen, TextDialog))
        assert asked == [231]


async def test_help_names_every_key(monitor, until):
    app = monitor("running")
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: app.screen.snapshot)
        names = [b.description for b in app.screen.BINDINGS]
        await pilot.press("question_mark")
        await until(pilot, lambda: isinstance(app.screen, TextDialog))
        text = str(app.screen.query_one("Static").render())
        assert all(name in text for name in names)


async def test_a_small_terminal_is_told(monitor, until):
    app = monitor("running")
    async with app.run_test(size=(50, 15)) as pilot:
        await until(pilot, lambda: app.screen.snapshot)
        assert app.screen.query_one("SizeHint").region.height == 1
        await pilot.resize_terminal(80, 24)
        await until(pilot, lambda: app.screen.query_one("SizeHint").region.height == 0)


async def test_benchmarks_have_a_chart_where_a_run_is_asked_some(make_run, until):
    run = make_run("finished")
    lines = run.events_path.read_text().splitlines(keepends=True)
    asked = {"task": "pubmedqa", "interval": [0.45, 0.7], "questions": 200, "seconds": 3.0}
    accuracies = [(0, 0.5), (200, 0.61), (400, 0.585)]
    more = [Event(n, 1.0, "eval_task", {**asked, "iteration": i, "accuracy": share}) for n, (i, share) in enumerate(accuracies)]
    start = lines[0].replace('"host"', '"keep_best":"accuracy:pubmedqa","host"')
    run.events_path.write_text("".join([start, *lines[1:-1], *(event.to_line() for event in more), lines[-1]]))
    app = MedsftApp("monitor", run=run, clock=lambda: 1_764_001_000.0)
    async with app.run_test(size=(120, 50)) as pilot:
        await until(pilot, lambda: app.screen.snapshot)
        await pilot.pause()
        chart = app.screen.query_one("#chart-benchmarks", LineChart)
        assert chart.display
        assert chart.region.height > 3
        assert [(line.label, list(line.y)) for line in chart.series] == [("pubmedqa", [50.0, 61.0, 58.5])]
        assert "61.0 % in pubmedqa after 200" in str(app.screen.query_one("#facts").render())
        assert "61.0 % against 58.5 % of the last" in str(app.screen.query_one("#notice").render())
        await pilot.resize_terminal(80, 24)
        await pilot.press("5")
        assert app.screen.current_chart == "benchmarks"
        assert "5 Benchmarks" in str(chart.border_title)


async def test_without_benchmarks_there_is_no_chart_of_them(monitor, until):
    app = monitor("running")
    async with app.run_test(size=(120, 50)) as pilot:
        await until(pilot, lambda: app.screen.snapshot)
        await pilot.press("5")
        assert app.screen.current_chart == "loss"
        assert not app.screen.query_one("#chart-benchmarks", LineChart).display


async def test_a_run_of_100_000_steps_stays_responsive(make_run, until):
    run = make_run("running", last=0)
    steps = 100_000
    with run.events_path.open("w") as log:
        log.write(Event(0, 1.0, "run_started", {"iteration": 0, "total": steps}).to_line())
        for i in range(1, steps):
            log.write(f'{{"v":1,"seq":{i},"time":{i},"kind":"step","iteration":{i},"total":{steps},"loss":{2 + i % 7}}}\n')
    app = MedsftApp("monitor", run=run)
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: app.screen.snapshot and app.screen.snapshot.view.iteration == steps - 1)
        assert len(app.screen.query_one("#chart-loss", LineChart).series[0].x) == steps - 1
        await pilot.press("2")
        assert app.screen.current_chart == "lr"


def test_importing_the_screens_imports_nothing_heavy():
    modules = "medsft.tui.app, medsft.tui.screens.monitor, medsft.tui.screens.runs, medsft.tui.wizard.screen"
    heavy = ("torch", "transformers", "medsft.core.engine.commands.worker")
    code = f"import sys, {modules}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
