"""Training beside other busy processes: what it costs that threads wait for each other by spinning."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import documents
from bench.runs import Job, medsft_outcome, plan_of, train, unpack_base
from bench.table import Row, print_table, say, spread

SPIN_COUNTS = (300_000, 100_000, 10_000, 0)
"""How often a thread looks whether the others have come before sleeping: libgomp's own choice, medsft's, and two lower ones."""
_VARIABLE = "GOMP_SPINCOUNT"
_BUSY_PER_CORE = 2


def measure(work: Path, *, repeats: int, steps: int, precision: str) -> dict[str, Any]:
    """Print and return the rates in tokens/s for each spin count, quiet and beside two busy processes a core, in turns."""
    rows_file = documents.write(work / "crowded.jsonl", 120)
    job = Job(base=unpack_base(work / "base"), rows=rows_file, precision=precision, global_batch=2, micro_batch=2)
    rates: dict[str, dict[int, list[float]]] = {where: {count: [] for count in SPIN_COUNTS} for where in ("quiet", "crowded")}
    busy = _BUSY_PER_CORE * len(os.sched_getaffinity(0))
    for turn in range(repeats):
        for where, loops in (("quiet", 0), ("crowded", busy)):
            for count in SPIN_COUNTS:
                # A step beside others takes a minute where threads spin.
                now = replace(job, steps=3 if loops else steps)
                with _spinning(count), _busy_processes(loops):
                    rate = medsft_outcome(train(plan_of(now, work))).tokens_per_second
                rates[where][count].append(rate)
                say(f"turn {turn + 1}/{repeats}, {where}, {_VARIABLE}={count}: {rate:.0f} tokens/s")
    quiet = statistics.median(rates["quiet"][SPIN_COUNTS[0]])
    fair = len(os.sched_getaffinity(0)) / (len(os.sched_getaffinity(0)) + busy)
    rows: list[Row] = [
        {
            "spin count": f"{count:,}",
            "tokens/s, quiet": spread(rates["quiet"][count], ".0f"),
            f"beside {busy} busy processes": spread(rates["crowded"][count], ".0f"),
            "of the fair share": f"{statistics.median(rates['crowded'][count]) / (fair * quiet):.2f}",
        }
        for count in SPIN_COUNTS
    ]
    print_table("Training on a machine that others use", rows)
    return {where: {str(count): values for count, values in found.items()} for where, found in rates.items()}


@contextmanager
def _spinning(count: int) -> Iterator[None]:
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = str(count)
    try:
        yield
    finally:
        os.environ.pop(_VARIABLE)
        if before is not None:
            os.environ[_VARIABLE] = before


@contextmanager
def _busy_processes(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
