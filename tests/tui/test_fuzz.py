"""Whatever keys come, at whatever size: the app never raises."""

from __future__ import annotations

import random

import pytest

from medsft.core.run import launch
from medsft.core.run.rundir import RunDir
from medsft.tui.app import MedsftApp, Start
from medsft.tui.screens import actions

KEYS = [
    *"abcdefgklmnorstuvwxy123456/?.-",
    *("enter", "escape", "tab", "shift+tab", "up", "down", "left", "right", "space", "backspace"),
    *("pagedown", "pageup", "home", "end", "ctrl+n", "ctrl+p"),
]
SIZES = [(80, 24), (120, 40), (60, 20), (40, 10), (200, 60), (20, 5)]
RUNS, SEQUENCES = 8, 200
"""A sequence starts where the one before ended, a run at one of the first screens."""


@pytest.fixture
def quiet(monkeypatch, project, make_run):
    """Nothing starts, nothing leaves the app: only the screens are at test."""
    monkeypatch.setattr(launch, "start", lambda plan: RunDir(project / "runs" / "none"))
    monkeypatch.setattr(actions, "resume_run", lambda run, on_status: "resumed")
    monkeypatch.setattr(actions, "export", lambda run: "exporting")
    monkeypatch.setattr(MedsftApp, "action_leave", lambda self: None)
    return [make_run(state, name=f"llama-tp1-pp1-{state}") for state in ("running", "failed", "finished")]


@pytest.mark.parametrize("seed", range(RUNS))
async def test_random_keys_and_sizes_never_raise(seed, quiet, project):
    draw = random.Random(seed)
    starts: tuple[Start, ...] = ("wizard", "monitor", "runs", "wizard")
    app = MedsftApp(starts[seed % 4], run=quiet[seed % 3], runs_folder=project / "runs", settings_file=project / "medsft.toml")
    async with app.run_test(size=draw.choice(SIZES)) as pilot:
        for _ in range(SEQUENCES // RUNS):
            for key in draw.choices(KEYS, k=draw.randint(1, 5)):
                app.simulate_key(key)
            await pilot.pause()
            if draw.random() < 0.3:
                await pilot.resize_terminal(*draw.choice(SIZES))
        assert app.is_running
