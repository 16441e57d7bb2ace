"""How soon the command line, the wizard and the monitor show something, and answer a key: in a terminal, from outside."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench.terminal import Terminal
from medsft.core.run.events import Event, EventWriter
from medsft.core.run.rundir import RunDir

_STEPS = 100_000
_OPENINGS = 12
_EVENTS_PER_SECOND = 50
_KEYS = 60
_WIDE, _SMALL = (120, 40), (80, 24)
_TITLES = ("1 Loss", "2 Learning rate", "3 Gradient norm", "4 Tokens/s")
"""On a small screen the current chart's title is bold and underlined."""


def measure(work: Path) -> dict[str, float]:
    """Return medians in seconds, and for keys the slowest too."""
    program = str(Path(sys.executable).with_name("medsft"))
    run = _record(work / "runs" / "recorded")
    helps = [_seconds([program, "--help"]) for _ in range(5)]
    wizard = ["env", f"XDG_STATE_HOME={(work / 'state').resolve()}", program, "wizard"]  # not with somebody's draft
    wizards = [_shown(wizard, b"Base model") for _ in range(5)]
    watch = [program, "watch", str(run.path)]
    openings = [_shown(watch, f"{_STEPS:,}".encode()) for _ in range(_OPENINGS)]
    answers = _keys(watch, run)
    run.delete()
    return {
        "medsft --help, s": statistics.median(helps),
        "wizard, until its first screen is drawn, s": statistics.median(wizards),
        f"monitor of {_STEPS:,} steps, until they are drawn, s": statistics.median(openings),
        "the slowest opening, s": max(openings),
        f"a key, until its chart is drawn, {_EVENTS_PER_SECOND} events/s arriving, s": statistics.median(answers),
        "the slowest key, s": max(answers),
    }


def _shown(command: list[str], pattern: bytes) -> float:
    with Terminal(command, _WIDE) as terminal:
        return terminal.until(pattern)


def _keys(watch: list[str], run: RunDir) -> list[float]:
    """Go through the charts while another process writes events."""
    writer = subprocess.Popen([sys.executable, "-m", "bench.screens", str(run.path)])
    answers = []
    try:
        with Terminal(watch, _SMALL) as terminal:
            terminal.until(f"{_STEPS // 1000},".encode())
            for key in range(_KEYS):
                title = _TITLES[(key + 1) % len(_TITLES)]
                terminal.rest(0.1 + key % 7 / 20)  # at any time between two looks at the log
                terminal.press(title[:1].encode())
                answers.append(terminal.until(rb"\x1b\[1;4[0-9;]*m" + title.encode()))
    finally:
        writer.kill()
        writer.wait()
    return answers


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


if __name__ == "__main__":
    _write_on(RunDir(Path(sys.argv[1])))
