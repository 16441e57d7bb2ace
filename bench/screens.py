"""How soon the command line, the wizard and the monitor show something, and answer a key. Each time in new processes."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from medsft.core.run.events import Event, EventWriter
from medsft.core.run.rundir import RunDir

_STEPS = 100_000
_OPENINGS = 12
_EVENTS_PER_SECOND = 50
_KEYS = 60
_FIRST_PAINT = """
import asyncio, time
start = time.perf_counter()
from medsft.tui.app import MedsftApp
async def main():
    async with MedsftApp("wizard").run_test(size=(100, 30)):
        print(time.perf_counter() - start)
asyncio.run(main())
"""
_MONITOR = f"""
import asyncio, gc, sys, time
gc.set_threshold(100_000, 20, 20)  # as `medsft` does
from pathlib import Path
from medsft.core.run.rundir import RunDir
from medsft.tui.app import MedsftApp
async def until(condition):
    while not condition():
        await asyncio.sleep(0.002)
async def main(run, began, keys):
    app = MedsftApp("monitor", run=RunDir(Path(run)))
    async with app.run_test(size=(120, 40)) as pilot:
        await until(lambda: app.screen.snapshot and app.screen.snapshot.view.iteration >= {_STEPS})
        print(time.time() - float(began), flush=True)
        for key in range(int(keys)):
            chart = ("loss", "lr", "grad_norm", "tokens_per_second")[key % 4]
            pressed = time.perf_counter()
            await pilot.press(str(key % 4 + 1))
            await until(lambda: app.screen.current_chart == chart)
            print(time.perf_counter() - pressed)
            await asyncio.sleep(0.1)
asyncio.run(main(*sys.argv[1:]))
"""


def measure(work: Path) -> dict[str, float]:
    """Return medians in seconds, and for keys the slowest too."""
    command = [str(Path(sys.executable).with_name("medsft")), "--help"]
    run = _record(work / "runs" / "recorded")
    openings = [_monitor(run)[0] for _ in range(_OPENINGS)]
    answers = _keys(run)
    run.delete()
    return {
        "medsft --help, s": statistics.median(_seconds(command) for _ in range(5)),
        "wizard: imports and first screen, s": statistics.median(
            _printed([sys.executable, "-c", _FIRST_PAINT])[0] for _ in range(5)
        ),
        f"monitor of {_STEPS:,} steps, until it shows them, s": statistics.median(openings),
        "the slowest opening, s": max(openings),
        f"its answer to a key while {_EVENTS_PER_SECOND} events/s arrive, s": statistics.median(answers),
        "the slowest answer, s": max(answers),
    }


def _monitor(run: RunDir, *, keys: int = 0) -> list[float]:
    """Return how long the monitor took to show the run, from the start of its process, and to answer each key."""
    return _printed([sys.executable, "-c", _MONITOR, str(run.path), str(time.time()), str(keys)])


def _keys(run: RunDir) -> list[float]:
    writer = subprocess.Popen([sys.executable, "-m", "bench.screens", str(run.path)])
    try:
        return _monitor(run, keys=_KEYS)[1:]
    finally:
        writer.kill()
        writer.wait()


def _record(folder: Path) -> RunDir:
    """Make the folder of a run as it is after so many steps."""
    shutil.rmtree(folder, ignore_errors=True)
    run = RunDir(folder)
    run.create(json.dumps({"format": 0}))
    start = time.time() - _STEPS
    with run.events_path.open("w", encoding="utf-8") as log:
        log.write(Event(0, start, "run_started", {"iteration": 0, "total": 2 * _STEPS, "world_size": 1}).to_line())
        for i in range(1, _STEPS + 1):
            log.write(Event(i, start + i, "step", _step(i)).to_line())
    return run


def _step(iteration: int) -> dict[str, float]:
    """Return the fields of a step of a training; the figures are as long as real ones."""
    wobble = (iteration * 7919 % 1009) / 1009
    return {
        "iteration": iteration,
        "total": 2 * _STEPS,
        "loss": 1.2 + 1 / (1 + iteration / 997) + wobble / 7,
        "lr": 2e-5 * (1 - iteration / (2 * _STEPS + 1)),
        "grad_norm": 0.8 + wobble / 3,
        "tokens": 20_000 + int(997 * wobble),
        "supervised_tokens": 5_000 + int(101 * wobble),
        "tokens_per_second": 4_000 + 97 * wobble,
        "step_seconds": 1 + wobble / 9,
        "eta_seconds": 2.0 * _STEPS - iteration,
        "memory_bytes": 3 << 30,
        "epoch": iteration / 33_333,
    }


def _write_on(run: RunDir) -> None:
    """Go on with the run's log until somebody ends this process."""
    events, iteration = EventWriter(run.events_path), _STEPS
    while True:
        iteration += 1
        events.write("step", **_step(iteration))
        time.sleep(1 / _EVENTS_PER_SECOND)


def _seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def _printed(command: list[str]) -> list[float]:
    return [float(line) for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()]


if __name__ == "__main__":
    _write_on(RunDir(Path(sys.argv[1])))
