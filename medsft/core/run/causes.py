"""Why the ranks of a run have ended: because they were asked to stop, or because of which rank's error."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress

from medsft.core.disk import probe
from medsft.core.run.events import EventReader
from medsft.core.run.launch import Launch
from medsft.core.run.rundir import RankError, RunDir
from medsft.errors import ExitCode, Failure

START_MARK = "medsft starts the ranks"
"""Parts the starts of a run in a launcher's log."""
TERMINATED = "got signal: 15"
"""What the launcher of the ranks, torchrun or `cluster.one_rank`, writes when SIGTERM has reached it."""
_SECONDARY = re.compile(r"[Cc]onnection (closed|reset|refused)|Broken pipe|[Tt]imed out|NCCL|Gloo|gloo")
"""What the other ranks say when one has died: never the cause."""
_OUT_OF_MEMORY = re.compile(
    r"out of memory|bad_alloc|can(no|')t allocate memory|ALLOC(ATION)?_FAILED|NOT_INITIALIZED when calling `?cublasCreate",
    re.IGNORECASE,
)
"""What CUDA, HIP, cuBLAS, cuDNN, NCCL, C++ and the system say. cuBLAS is not initialized where its workspace finds no room."""
_WATCHDOG = re.compile(r"Watchdog caught collective operation timeout|[Hh]eartbeat monitor timed out")
"""What NCCL's watchdog in torch logs before it ends a rank by SIGABRT (ProcessGroupNCCL.cpp)."""
_TAIL_BYTES = 1 << 18
"""Of a rank's log: the watchdog's line may stand in front of the traces of all threads."""


def was_stopped(run: RunDir, launch: Launch) -> bool:
    """Tell whether the ranks have ended as asked, though torchrun failed: Slurm's SIGTERM reaches it as well as the ranks."""
    return "stopped" in _kinds_of_start(run, launch)


def _kinds_of_start(run: RunDir, launch: Launch) -> set[str]:
    """Return of which kinds there are events since the latest start."""
    return {event.kind for event in EventReader(run.events_path).read() if event.seq > launch.after}


def was_stopped_while_starting(run: RunDir, launch: Launch, *, asked: bool = False) -> bool:
    """Tell whether SIGTERM has ended ranks that did not train yet, and nothing else did. `asked`: somebody sent one."""
    numbers = [number for _, number in _killed_ranks(run, launch)]
    asked = asked or run.requested("stop") or any(TERMINATED in _log_of_start(run, node) for node in range(launch.nodes))
    trained = "step" in _kinds_of_start(run, launch)
    return asked and not trained and not has_cause(run) and all(number == signal.SIGTERM for number in numbers)


def how_to_resume(run: RunDir) -> str:
    """Return the remedy for most of what can end a run."""
    return f"Go on from the last checkpoint: medsft resume {run.path}"


def _causes(errors: Sequence[RankError]) -> list[RankError]:
    return [error for error in errors if error.expected or not _is_secondary(error.failure.reason)]


def _is_secondary(reason: str) -> bool:
    return _SECONDARY.search(reason) is not None and not says_out_of_memory(reason)


def says_out_of_memory(text: str) -> bool:
    """Tell whether the text of an error means that memory did not suffice, of a GPU or of the machine."""
    return _OUT_OF_MEMORY.search(text) is not None


def has_cause(run: RunDir) -> bool:
    """Tell whether a rank of this node or another has left an error that is not the consequence of another rank's."""
    return bool(_causes(run.rank_errors()))


def first_failure(run: RunDir, launch: Launch, code: int) -> Failure:
    """Return the failure of the rank that failed first, not of those that only lost their connection to it.

    `code` is the exit code of their launcher.
    """
    errors = run.rank_errors()
    if causes := _causes(errors):
        return min(causes, key=lambda error: (not error.expected, error.time)).failure
    if killed := [(rank, number) for rank, number in _killed_ranks(run, launch) if number != signal.SIGTERM]:
        rank, number = killed[0]
        if number == signal.SIGABRT:
            return _aborted(run, rank)
        by = " (SIGKILL: by a person, or by the system when memory ran out)." if number == signal.SIGKILL else "."
        return Failure(f"Rank {rank} was killed by signal {number}{by}", how_to_resume(run))
    if errors:
        first = min(errors, key=lambda error: error.time)
        return Failure(f"Rank {first.rank}: {first.failure.reason}", how_to_resume(run))
    if (found := probe(run.path)) is not None:  # no rank could write its error, and the launcher not its log
        return Failure(found.message, how_to_resume(run))
    reason = f"The launcher of the ranks exited with code {code}, and no rank reported an error."
    return Failure(reason, f"{run.launcher_log()} says why. {how_to_resume(run)}", ExitCode.LAUNCH)


def _aborted(run: RunDir, rank: int) -> Failure:
    """Return why a library has ended a rank by SIGABRT, as far as the logs of this start say."""
    logs = "\n".join(_logs_of_ranks(run))
    more = f"Each rank's log in {run.logs} has more. {how_to_resume(run)}"
    if _WATCHDOG.search(logs):
        waited = f"Rank {rank} waited for other ranks until NCCL's watchdog ended it (signal 6)"
        return Failure(f"{waited}: one of them, or the network between them, hangs.", more)
    if says_out_of_memory(logs):
        return Failure(f"Out of memory: a library has ended rank {rank} (signal 6).", more)
    return Failure(f"Rank {rank} was killed by signal 6 (SIGABRT: by a library).", more)


def _logs_of_ranks(run: RunDir) -> Iterator[str]:
    """Yield the end of what each rank has written to standard error since the latest start."""
    with suppress(OSError):
        began = run.launch_path.stat().st_mtime
        for log in run.logs.rglob("stderr.log"):
            if log.stat().st_mtime >= began:
                with log.open("rb") as file:
                    file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
                    yield file.read().decode("utf-8", "replace")


def _killed_ranks(run: RunDir, launch: Launch) -> list[tuple[int, int]]:
    """Return (rank, signal) of the ranks that the launcher reports as killed in this start, on each node the first in front."""
    result = []
    for node in range(launch.nodes):
        failures, _, root_cause = _log_of_start(run, node).partition("Root Cause")
        # torchrun numbers nodes in an order of its own, so only the number on the node counts
        found = re.findall(r"\(local_rank: (\d+)\)\s+exitcode\s+: -(\d+)", root_cause + failures)
        result += [(node * launch.nproc_per_node + int(local), int(number)) for local, number in found]
    return result


def _log_of_start(run: RunDir, node: int) -> str:
    """Return what the launcher of a node has written since the latest start."""
    try:
        return run.launcher_log(node).read_text(errors="replace").rpartition(START_MARK)[2]
    except OSError:
        return ""
