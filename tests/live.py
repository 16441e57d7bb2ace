"""Real runs in processes of their own: to wait for them, to find their processes, to kill these."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress

import psutil

from medsft.core.run.launch import ONE_RANK, TORCHRUN, WORKER
from medsft.core.run.rundir import RunDir


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def wait_until_gone(*pids: int) -> None:
    """Wait until these processes have ended."""
    wait_for(lambda: all(map(_has_ended, pids)))


def _has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_for_end(run: RunDir, seconds: float = 90) -> str:
    wait_for(lambda: not run.alive(), seconds)
    return run.state(run.view())


def workers_of(run: RunDir) -> list[psutil.Process]:
    """The ranks of a run: processes that were started with its folder, in the order of their rank."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if WORKER in words and str(run.path) in words and TORCHRUN not in words:
            found.append(process)
    return sorted(found, key=lambda process: process.environ()["RANK"])


def processes_of(run: RunDir) -> list[psutil.Process]:
    """Every process that was started with the folder of a run: supervisor, launcher, ranks, export."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if str(run.path) in (process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def signal_all(processes: list[psutil.Process], number: int) -> None:
    """Send a signal to processes, of which the first that ends may have ended the others."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def launcher_of(run: RunDir) -> psutil.Process | None:
    return next((process for process in processes_of(run) if {TORCHRUN, ONE_RANK} & set(process.cmdline())), None)


def assert_nothing_survives(run: RunDir) -> None:
    """A run that is shown as ended has no process that writes.

    One that was just about to end may take a moment, and so may a rank that was still importing: it looks for its launcher
    before it does anything else, and imports take long on a busy machine.
    """
    assert not run.alive()
    before = run.events_path.read_bytes() if run.events_path.exists() else b""
    end = time.monotonic() + 30
    while left := processes_of(run):
        assert time.monotonic() < end, [process.cmdline() for process in left]
        time.sleep(0.02)
    assert (run.events_path.read_bytes() if run.events_path.exists() else b"") == before


def supervisor_of(run: RunDir) -> int:
    return int(json.loads(run.process_path.read_text())["pid"])


def wait_for_steps(run: RunDir, number: int) -> None:
    """Wait until the run has done so many more steps."""
    done = run.view().iteration
    wait_for(lambda: run.view().iteration >= done + number)


def wait_for_workers(run: RunDir, number: int) -> None:
    wait_for(lambda: len(workers_of(run)) == number)


def wait_for_files(run: RunDir, pattern: str) -> None:
    """Wait until something in the run's folder has such a name."""
    wait_for(lambda: any(run.path.glob(pattern)))


VICTIMS = ("rank 0", "rank 1", "launcher", "supervisor", "supervisor and launcher")


def kill(run: RunDir, victim: str) -> None:
    """Send SIGKILL to a part of a run, if it is still there."""
    launcher, supervisor = launcher_of(run), psutil.Process(supervisor_of(run))
    if victim.startswith("rank"):
        workers_of(run)[int(victim[-1])].kill()
        return
    if "supervisor" in victim:
        supervisor.suspend()  # so that it cannot act on the other's death
    if "launcher" in victim and launcher is not None:
        launcher.kill()
    if "supervisor" in victim:
        supervisor.kill()
