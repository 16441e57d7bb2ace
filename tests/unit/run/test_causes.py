"""What is told of ranks that have ended, from their errors and logs."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from tiny import launched

from medsft.core.planning.layout import Layout
from medsft.core.run.causes import START_MARK, first_failure, has_cause
from medsft.core.run.launch import Launch
from medsft.core.run.rundir import RankError, RunDir
from medsft.errors import Failure

LAUNCH = Launch(layout=Layout(dp=2), nproc_per_node=2, micro_batch=1, num_micro_batches=1)
WATCHDOG = (
    "[rank1]:[E1128 10:00:00.1 ProcessGroupNCCL.cpp:685] [Rank 1] Watchdog caught collective operation timeout: WorkNCCL("
    "SeqNum=9, OpType=ALLREDUCE, NumelIn=7, NumelOut=7, Timeout(ms)=1800000) ran for 1800018 milliseconds before timing out."
)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return launched(tmp_path / "run")


def kill(run: RunDir, number: int, log: str = "") -> None:
    """Have torchrun report that a signal has ended rank 1, whose log is this."""
    cause = f"  rank      : 1 (local_rank: 1)\n  exitcode  : -{number} (pid: 7)\n"
    report = f"{START_MARK}\nRoot Cause (first observed failure):\n{cause}"
    run.launcher_log().write_text(report)
    folder = run.logs / "none_x" / "attempt_0" / "1"
    folder.mkdir(parents=True)
    (folder / "stderr.log").write_text(log)


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (WATCHDOG, "Rank 1 waited for other ranks until NCCL's watchdog ended it (signal 6)"),
        ("Heartbeat monitor timed out! Process will be terminated", "until NCCL's watchdog ended it"),
        (
            "terminate called after throwing an instance of std::bad_alloc",
            "Out of memory: a library has ended rank 1",
        ),
        ("free(): invalid pointer", "Rank 1 was killed by signal 6 (SIGABRT: by a library)."),
    ],
)
def test_a_library_has_ended_a_rank(run: RunDir, log: str, said: str) -> None:
    kill(run, signal.SIGABRT, log)
    failure = first_failure(run, LAUNCH, 1)
    assert said in failure.reason
    assert str(run.logs) in failure.remedy
    assert "medsft resume" in failure.remedy


def test_the_log_of_an_earlier_start_says_nothing(run: RunDir) -> None:
    kill(run, signal.SIGABRT, WATCHDOG)
    (log,) = run.logs.rglob("stderr.log")
    os.utime(log, (0, 0))
    assert "SIGABRT" in first_failure(run, LAUNCH, 1).reason


def test_a_rank_without_memory_is_the_cause_and_not_a_consequence(run: RunDir) -> None:
    """Of an earlier version, too, which wrote what NCCL said."""
    lost = RankError(0, 1.0, Failure("DistBackendError: NCCL error: remote process exited"), expected=False)
    short = RankError(1, 2.0, Failure("DistBackendError: NCCL error: Cuda failure 2 'out of memory'"), expected=False)
    run.write_rank_error(lost)
    assert not has_cause(run)
    run.write_rank_error(short)
    assert first_failure(run, LAUNCH, 1) == short.failure
