"""Why the ranks of a run have ended: as they were asked to, or by which rank's fault."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medsft.core.disk import probe
from medsft.core.run.events import EventReader
from medsft.core.run.launch import Launch, node_suffix
from medsft.core.run.rundir import RunDir
from medsft.errors import ExitCode, MedsftError

START_MARK = "medsft starts the ranks"
"""Parts the starts of a run in a launcher's log."""
_TERMINATED = "got signal: 15"
"""What torchrun writes when SIGTERM has reached it."""
_SECONDARY = re.compile(r"[Cc]onnection (closed|reset|refused)|Broken pipe|[Tt]imed out|NCCL|Gloo|gloo")
"""What the other ranks say when one has died: never the cause."""


def launcher_log(run: RunDir, node: int) -> Path:
    """Return where torchrun of a node writes."""
    return run.logs / f"launcher{node_suffix(node)}.log"


def was_stopped(run: RunDir, launch: Launch) -> bool:
    """Tell whether the ranks have ended as asked, though torchrun failed: Slurm's SIGTERM reaches it as well as the ranks."""
    return "stopped" in _kinds_of_start(run, launch)


def _kinds_of_start(run: RunDir, launch: Launch) -> set[str]:
    """Return of which kinds there are events since the latest start."""
    return {event.kind for event in EventReader(run.events_path).read() if event.seq > launch.after}


def was_stopped_while_starting(run: RunDir, launch: Launch, *, asked: bool = False) -> bool:
    """Tell whether SIGTERM has ended ranks that did not train yet, and nothing else did. `asked`: somebody sent one."""
    numbers = [number for _, number in _killed_ranks(run, launch)]
    asked = asked or run.requested("stop") or any(_TERMINATED in _log_of_start(run, node) for node in range(launch.nodes))
    trained = "step" in _kinds_of_start(run, launch)
    return asked and not trained and not has_cause(run) and all(number == signal.SIGTERM for number in numbers)


def how_to_go_on(run: RunDir) -> str:
    """Return the remedy for most of what can end a run."""
    return f"Go on from the last checkpoint: medsft resume {run.path}"


def _error_records(run: RunDir) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for path in run.control.glob("error_rank_*.json"):
        try:
            records.append(json.loads(path.read_text()))
        except (ValueError, OSError):
            continue
    return records


def _causes(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [r for r in records if r["expected"] or not _SECONDARY.search(r["reason"])]


def has_cause(run: RunDir) -> bool:
    """Tell whether a rank of this node or another has left an error that is not the echo of another's."""
    return bool(_causes(_error_records(run)))


def first_error(run: RunDir, launch: Launch, code: int) -> MedsftError:
    """Return the error of the rank that failed first, not of those that only lost its company."""
    records = _error_records(run)
    if causes := _causes(records):
        first = min(causes, key=lambda r: (not r["expected"], r["time"]))
        return error_with(str(first["reason"]), str(first["remedy"]), ExitCode(first["exit_code"]))
    if killed := [(rank, number) for rank, number in _killed_ranks(run, launch) if number != signal.SIGTERM]:
        rank, number = killed[0]
        by = " (SIGKILL: by a person, or by the system when memory ran out)." if number == signal.SIGKILL else "."
        return error_with(f"Rank {rank} was killed by signal {number}{by}", how_to_go_on(run), ExitCode.TRAINING)
    if records:
        first = min(records, key=lambda r: r["time"])
        return error_with(f"Rank {first['rank']}: {first['reason']}", how_to_go_on(run), ExitCode.TRAINING)
    if (found := probe(run.path)) is not None:  # no rank could leave a word, and no launcher write its log
        return error_with(found.message, how_to_go_on(run), ExitCode.TRAINING)
    why = f"{run.logs / 'launcher.log'} says why. {how_to_go_on(run)}"
    return error_with(f"The launcher ended with code {code}.", why, ExitCode.LAUNCH)


def error_with(reason: str, remedy: str, exit_code: ExitCode) -> MedsftError:
    """Return an error for people."""
    error = MedsftError(reason, hint=remedy)
    error.exit_code = exit_code
    return error


def _killed_ranks(run: RunDir, launch: Launch) -> list[tuple[int, int]]:
    """Return (rank, signal) of the ranks that torchrun reports as killed in this start, on each node the first in front."""
    result = []
    for node in range(launch.nodes):
        failures, _, root_cause = _log_of_start(run, node).partition("Root Cause")
        # torchrun numbers nodes in an order of its own, so only the number on the node counts
        found = re.findall(r"\(local_rank: (\d+)\)\s+exitcode\s+: -(\d+)", root_cause + failures)
        result += [(node * launch.nproc_per_node + int(local), int(number)) for local, number in found]
    return result


def _log_of_start(run: RunDir, node: int) -> str:
    """Return what torchrun of a node has written since the latest start."""
    try:
        return launcher_log(run, node).read_text(errors="replace").rpartition(START_MARK)[2]
    except OSError:
        return ""
