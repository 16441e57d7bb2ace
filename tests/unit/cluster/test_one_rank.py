"""The launcher of a run with one rank: its logs, its restarts, and what it says of a rank that a signal has ended."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from tiny import launched

from medsft.core.cluster.one_rank import Launcher
from medsft.core.planning.layout import Layout
from medsft.core.run.causes import START_MARK, first_failure
from medsft.core.run.launch import Launch
from medsft.core.run.rundir import RunDir

LAUNCH = Launch(layout=Layout(), nproc_per_node=1, micro_batch=1, num_micro_batches=1)
FAILS_ONCE = """
import os, sys, pathlib
seen = pathlib.Path(sys.argv[1]) / "seen"
print("ranks", os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["MEDSFT_PARENT"] == str(os.getppid()), flush=True)
if not seen.exists():
    seen.touch()
    sys.exit("failed")
"""
IS_KILLED = "import os; os.kill(os.getpid(), 9)"
SAVES = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: ((folder / "saved").touch(), sys.exit(0)))
(folder / "ready").touch()
time.sleep(60)
"""


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return launched(tmp_path / "run")


@pytest.fixture(autouse=True)
def same_signals():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def launcher(run: RunDir, program: str, monkeypatch: pytest.MonkeyPatch, restarts: int = 0) -> Launcher:
    (run.path / "program_of_a_test.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(run.path), *sys.path]))
    return Launcher(run.path, restarts, "program_of_a_test")


def logs(run: RunDir, name: str) -> list[str]:
    return [path.read_text().strip() for path in sorted(run.logs.glob(f"*/attempt_*/0/{name}.log"))]


def test_a_rank_is_restarted_and_each_attempt_has_its_logs(run, monkeypatch):
    assert launcher(run, FAILS_ONCE, monkeypatch, restarts=2).main() == 0
    assert logs(run, "stdout") == ["ranks 0 1 True"] * 2
    assert logs(run, "stderr") == ["failed", ""]


def test_a_rank_that_goes_on_failing_fails(run, monkeypatch):
    assert launcher(run, "import sys; sys.exit(6)", monkeypatch, restarts=1).main() == 1
    assert len(logs(run, "stdout")) == 2


def test_the_signal_that_ended_a_rank_is_found_in_what_is_printed(run, monkeypatch, capfd):
    assert launcher(run, IS_KILLED, monkeypatch).main() == 1
    run.launcher_log().write_text(f"{START_MARK}\n{capfd.readouterr().out}")
    assert "Rank 0 was killed by signal 9" in first_failure(run, LAUNCH, 1).reason


def test_a_rank_that_is_stopped_saves_and_is_not_started_again(run, monkeypatch):
    one = launcher(run, SAVES, monkeypatch, restarts=3)

    def stop() -> None:
        while not (run.path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    assert one.main() == 0
    assert (run.path / "saved").exists()
    assert len(logs(run, "stdout")) == 1
