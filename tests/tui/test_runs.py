from __future__ import annotations

import pytest
from textual.widgets import DataTable

from medsft.tui.app import MedsftApp
from medsft.tui.screens.compare import CompareScreen, short_names
from medsft.tui.screens.monitor import MonitorScreen
from medsft.tui.widgets.dialogs import Confirm

NOW = 1_764_000_000.0


@pytest.fixture
def app(make_run):
    runs = [
        make_run(state, name=f"llama-0.135b-tp1-pp1-smollm2-{state}") for state in ("running", "stopped", "failed", "finished")
    ]
    return MedsftApp("runs", runs_folder=runs[0].path.parent, clock=lambda: NOW)


async def listed(pilot, until):
    table = pilot.app.screen.query_one(DataTable)
    await until(pilot, lambda: table.row_count == 4)
    await pilot.pause()


async def choose(pilot, until, state):
    table = pilot.app.screen.query_one(DataTable)
    await listed(pilot, until)
    table.move_cursor(row=table.get_row_index(f"llama-0.135b-tp1-pp1-smollm2-{state}"))
    await until(pilot, lambda: pilot.app.screen.chosen.state == state)


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_the_table_looks_as_before(size, app, until, same_as_before, monkeypatch):
    monkeypatch.setattr("medsft.core.run.rundir.RunDir.size_bytes", lambda self: 5 << 30)
    async with app.run_test(size=size) as pilot:
        await listed(pilot, until)
        await same_as_before(pilot, f"runs-{size[0]}x{size[1]}")


async def test_the_table_can_be_read_in_the_light_theme(app, until, same_as_before, monkeypatch):
    monkeypatch.setattr("medsft.core.run.rundir.RunDir.size_bytes", lambda self: 5 << 30)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("t")
        await listed(pilot, until)
        await same_as_before(pilot, "runs-light-80x24")


async def test_an_empty_folder_says_so(tmp_path, until):
    app = MedsftApp("runs", runs_folder=tmp_path)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "no runs" in str(app.screen.query_one("#about").render()))


async def test_enter_opens_the_monitor_and_escape_comes_back(app, until):
    async with app.run_test(size=(80, 24)) as pilot:
        await choose(pilot, until, "stopped")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, MonitorScreen) and app.screen.snapshot)
        assert app.screen.state == "stopped"
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, MonitorScreen))


async def test_marked_runs_are_compared(app, until, same_as_before):
    async with app.run_test(size=(80, 24)) as pilot:
        for state in ("stopped", "finished"):
            await choose(pilot, until, state)
            await pilot.press("m")
        assert app.screen.check_action("compare", ())
        await pilot.press("c")
        await until(pilot, lambda: isinstance(app.screen, CompareScreen))
        await pilot.pause()
        assert sorted(series.label for series in app.screen.query_one("#compare").series) == ["finished", "stopped"]
        await same_as_before(pilot, "compare-80x24")


async def test_delete_asks_and_removes(app, until):
    async with app.run_test(size=(80, 24)) as pilot:
        await choose(pilot, until, "failed")
        path = app.screen.chosen.run.path
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        assert "KiB" in str(app.screen.query_one("#detail").render())
        await pilot.press("y")
        await until(pilot, lambda: not path.exists())
        await until(pilot, lambda: app.screen.query_one(DataTable).row_count == 3)


async def test_a_running_run_cannot_be_deleted_or_exported(app, until):
    async with app.run_test(size=(80, 24)) as pilot:
        await choose(pilot, until, "running")
        allowed = {a for a in ("stop", "resume", "export", "delete") if app.screen.check_action(a, ())}
        assert allowed == {"stop"}


def test_names_lose_what_they_share():
    assert short_names(["llama-tp1-a-x", "llama-tp1-b"]) == ["a-x", "b"]
    assert short_names(["same", "same"]) == ["same", "same"]
    assert short_names(["llama-tp1-a"]) == ["llama-tp1-a"]
