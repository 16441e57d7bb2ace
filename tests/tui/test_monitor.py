from __future__ import annotations

import pytest

STATES = ("planned", "running", "stopping", "stopped", "finished", "failed", "lost")
SIZES = {"80x24": (80, 24), "120x40": (120, 40), "60x20": (60, 20)}
PICTURES = [(state, "80x24") for state in STATES] + [("running", "120x40"), ("failed", "120x40"), ("running", "60x20")]


@pytest.mark.parametrize(("state", "size"), PICTURES)
async def test_each_state_looks_as_before(state, size, monitor, until, same_as_before):
    app = monitor(state)
    async with app.run_test(size=SIZES[size]) as pilot:
        await until(pilot, lambda: app.screen.snapshot)
        await pilot.pause()
        same_as_before(app, f"monitor-{state}-{size}")
