"""The folder of a run: the only meeting point of training, CLI and wizard, and the only module that knows its file names.

plan.json                             the frozen plan; written first, so a folder with a plan is a run
events.jsonl                          what happens (see `events`)
.status.txt                           one line for people, as the original wrote it
latest_checkpointed_iteration.txt     the tracker, for other programs: number of the latest complete checkpoint
iter_0000800/                         a checkpoint; it exists when its name does, and is good when its manifest says so
.iter_0000800.saving/                 a checkpoint that is being written
logs/                                 launcher.log, supervisor.log, export.log, and a folder for each rank
control/                              stop, save                           requests
                                      launch.json                          the latest start
                                      process.json, heartbeat, part_*.json who works on the run
                                      error_rank_N.json, end_node_N.json   why a rank, or a node's part, ended
                                      start.lock, writer.lock              one process at a time starts it, and trains it
RUN.rehearsal.json                    beside the folder: what a rehearsal measured

Node N other than 0 has process_node_N.json, launcher-nodeN.log and supervisor-nodeN.log. What a run shows to those who take it
as a base model has its names in `models.run_folder`: the plan, the checkpoints and their manifests.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsft.core.disk import writing_to
from medsft.core.files import write_atomically
from medsft.core.models.run_folder import PLAN_NAME, checkpoint_path, incomplete, is_run, iterations_in
from medsft.core.planning.plan import read_plan_file
from medsft.core.printable import one_line
from medsft.core.run.events import EventReader
from medsft.core.run.processes import lives, record_of
from medsft.core.run.view import RunView, ViewFold
from medsft.errors import ExitCode, Failure, MismatchError

HEARTBEAT_SECONDS = 5.0
LOST_AFTER_SECONDS = 60.0
STATES = ("planned", "running", "stopping", "stopped", "finished", "failed", "lost")
REHEARSAL_SUFFIX = ".rehearsal.json"


@dataclass(frozen=True, slots=True)
class RankError:
    """Why a rank has ended."""

    rank: int
    time: float
    """Unix time"""
    failure: Failure
    expected: bool
    """Whether it is an error that medsft knows, and not an exception of a library."""


@dataclass(frozen=True, slots=True)
class RunDir:
    """Paths and small files of one run. Holds no state of its own: everything is on disk."""

    path: Path

    @property
    def plan_path(self) -> Path:
        """The frozen plan."""
        return self.path / PLAN_NAME

    @property
    def events_path(self) -> Path:
        """The event log."""
        return self.path / "events.jsonl"

    @property
    def logs(self) -> Path:
        """Folder of the launcher's and the ranks' output."""
        return self.path / "logs"

    @property
    def control(self) -> Path:
        """Folder of requests to the run, and of its signs of life."""
        return self.path / "control"

    @property
    def tracker_path(self) -> Path:
        """File with the number of the latest complete checkpoint."""
        return self.path / "latest_checkpointed_iteration.txt"

    @property
    def heartbeat_path(self) -> Path:
        """File that a living run touches every few seconds."""
        return self.control / "heartbeat"

    @property
    def launch_path(self) -> Path:
        """File with the latest start: layout, places, nodes."""
        return self.control / "launch.json"

    @property
    def start_lock_path(self) -> Path:
        """Lock that a process holds while it starts the run."""
        return self.control / "start.lock"

    @property
    def writer_lock_path(self) -> Path:
        """Lock of the process that writes checkpoints and events."""
        return self.control / "writer.lock"

    @property
    def status_path(self) -> Path:
        """File with lines for people."""
        return self.path / ".status.txt"

    @property
    def export_log(self) -> Path:
        """What an export that was started from a list of runs prints."""
        return self.logs / "export.log"

    @property
    def rehearsal_path(self) -> Path:
        """File beside the folder with what a rehearsal of this run measured."""
        return self.path.with_name(self.path.name + REHEARSAL_SUFFIX)

    def launcher_log(self, node: int = 0) -> Path:
        """What the launcher of a node prints."""
        return self.logs / f"launcher{_node_suffix(node)}.log"

    def supervisor_log(self, node: int = 0) -> Path:
        """What the supervisor of a node prints."""
        return self.logs / f"supervisor{_node_suffix(node)}.log"

    def error_path(self, rank: int) -> Path:
        """Why a rank has ended."""
        return self.control / f"error_rank_{rank}.json"

    @property
    def process_path(self) -> Path:
        """Who runs it: host, process id, and start time of that process."""
        return self.node_process_path(0)

    def node_process_path(self, node: int) -> Path:
        """Who runs it on a node; node 0 counts for the whole run."""
        return self.control / (f"process_node_{node}.json" if node else "process.json")

    def part_path(self, part: str) -> Path:
        """Which process a part of the run is, and on which node: `rank_3`, or `launcher_0` of node 0."""
        return self.control / f"part_{part}.json"

    def end_path(self, node: int) -> Path:
        """How the run ended on a node other than 0: reason, remedy and exit code. Node 0 writes an event."""
        return self.control / f"end_node_{node}.json"

    def checkpoint_path(self, iteration: int) -> Path:
        """Folder of one checkpoint."""
        return checkpoint_path(self.path, iteration)

    def saving_path(self, iteration: int) -> Path:
        """Folder in which a checkpoint is written before it takes its name."""
        return self.path / f".{self.checkpoint_path(iteration).name}.saving"

    def unfinished_saves(self) -> list[Path]:
        """Return what saves, and removals of checkpoints, have left or are at."""
        return list(self.path.glob(".iter_*.saving*"))

    def discarded_path(self, iteration: int, why: str) -> Path:
        """Name that a checkpoint gets before it is deleted, because it was `replaced` or `removed`."""
        return self.path / f"{self.saving_path(iteration).name}.{why}"

    def exists(self) -> bool:
        """Tell whether this folder is a run."""
        return is_run(self.path)

    def create(self, plan_json: str) -> None:
        """Make the folder and write the plan once. Raises `FileExistsError` when a plan is there already."""
        self.make_folders()
        write_atomically(self.plan_path, plan_json, replace=False)

    def make_folders(self) -> None:
        """Make the folders that are not there."""
        for folder in (self.path, self.logs, self.control):
            folder.mkdir(parents=True, exist_ok=True)

    def read_plan(self) -> dict[str, Any]:
        """Return the plan as it was written. Raises `MismatchError` when there is none or it is damaged."""
        return read_plan_file(self.plan_path)

    def checkpoints(self) -> list[int]:
        """Return the iterations of the checkpoints, ascending. Unfinished saves have other names."""
        return iterations_in(self.path)

    def whole_checkpoints(self) -> list[int]:
        """Return those of `checkpoints` that have all their files, of the right sizes; their content is not read."""
        return [iteration for iteration in self.checkpoints() if incomplete(self.checkpoint_path(iteration)) is None]

    def latest_checkpoint(self) -> int | None:
        """Return the latest of `whole_checkpoints`, or None. What is on the disk decides, not the tracker."""
        for iteration in reversed(self.checkpoints()):
            if incomplete(self.checkpoint_path(iteration)) is None:
                return iteration
        return None

    def set_latest_checkpoint(self, iteration: int) -> None:
        """Move the tracker, for other programs; call it only when the checkpoint is durable.

        It may fail (a full disk): nothing here reads it, and the checkpoint is there without it.
        """
        with suppress(OSError):
            write_atomically(self.tracker_path, str(iteration))

    def write_status(self, line: str, *, fresh: bool = False) -> None:
        """Append a line to `.status.txt`, or start the file anew. It may fail: the line is for people, a run needs none."""
        with suppress(OSError), self.status_path.open("w" if fresh else "a", encoding="utf-8") as file:
            file.write(one_line(line) + "\n")

    def request_path(self, what: str) -> Path:
        """File that asks the run for something: `stop` or `save`."""
        return self.control / what

    def request(self, what: str) -> None:
        """Ask the run for something at its next step: `stop` or `save`. Raises `DiskError` when that cannot be written."""
        record = _small_record(self.process_path)
        hint = "Make room there, and ask again."
        if what == "stop" and lives(record):
            hint += f" Or send its supervisor the signal: kill {record['pid']} (it saves where the disk takes a checkpoint)."
        with writing_to(self.request_path(what), ExitCode.LAUNCH, hint=hint):
            self.control.mkdir(exist_ok=True)  # without its parents: a run whose folder is gone must not leave a new one
            self.request_path(what).touch()

    def requested(self, what: str) -> bool:
        """Tell whether somebody has asked for it."""
        return self.request_path(what).exists()

    def clear_request(self, what: str) -> None:
        """Take a request back, because it was met or is of an earlier start."""
        self.request_path(what).unlink(missing_ok=True)

    def write_rank_error(self, error: RankError) -> None:
        """Write why a rank has ended, for the supervisor. Raises `OSError`."""
        record = {"rank": error.rank, "time": error.time, **error.failure.to_json(), "expected": error.expected}
        write_atomically(self.error_path(error.rank), json.dumps(record))

    def rank_errors(self) -> list[RankError]:
        """Return why ranks have ended since the latest start, of those that could write it."""
        records = [_small_record(path) for path in self.control.glob("error_rank_*.json")]
        return [
            RankError(int(record["rank"]), float(record["time"]), Failure.from_json(record), bool(record["expected"]))
            for record in records
            if {"rank", "time", "expected"} <= record.keys()
        ]

    def write_end(self, node: int, failure: Failure) -> None:
        """Write how the run ended, for the command that waits on a node other than 0. Raises `OSError`."""
        write_atomically(self.end_path(node), json.dumps(failure.to_json()))

    def read_end(self, node: int) -> Failure | None:
        """Return how the run ended as its supervisor on a node other than 0 wrote it, None where it could not."""
        record = _small_record(self.end_path(node))
        return Failure.from_json(record) if record else None

    def clear_start(self) -> None:
        """Remove what an earlier start has left in `control`: requests, errors, ends, and which processes were its parts."""
        for request in ("stop", "save"):
            self.clear_request(request)
        for pattern in ("error_rank_*.json", "end_node_*.json", "part_*.json"):
            for old in self.control.glob(pattern):
                old.unlink()

    def remove_unstarted(self) -> None:
        """Remove what an attempt to start has made, where it did not come to a run."""
        if self.exists():
            return
        with suppress(OSError):
            for path in (self.start_lock_path, self.writer_lock_path, *self.logs.glob("supervisor*.log")):
                path.unlink(missing_ok=True)
        for folder in (self.logs, self.control, self.path):
            with suppress(OSError):
                folder.rmdir()

    def beat(self) -> None:
        """Touch the heartbeat."""
        self.heartbeat_path.touch()

    def claim(self, pid: int, *, node: int = 0) -> None:
        """Note the process that runs this run on a node."""
        self.control.mkdir(exist_ok=True)
        write_atomically(self.node_process_path(node), json.dumps(record_of(pid)))
        if node == 0:
            self.beat()

    def is_claimed_by(self, pid: int, *, node: int = 0) -> bool:
        """Tell whether `claim` has noted this process on a node, whether or not it has ended since."""
        return _small_record(self.node_process_path(node)).get("pid") == pid

    def release(self, *, node: int = 0) -> None:
        """Note that the process of `claim` has nothing left to do: another host need not wait for its heartbeat to grow old."""
        path = self.node_process_path(node)
        try:
            write_atomically(path, json.dumps({**_small_record(path), "ended": time.time()}))
        except OSError:  # a full disk still lets go
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def claim_part(self, part: str, pid: int, *, node: int = 0) -> None:
        """Note which process a part of the run is: see `part_path`."""
        write_atomically(self.part_path(part), json.dumps({**record_of(pid), "node": node}))

    def alive(self, node: int = 0) -> bool:
        """Tell whether a process works on this run: its supervisor, or the launcher and ranks that save and end after it.

        On the same host they are known by their ids, elsewhere by the heartbeat. Nodes other than 0 give no sign of life on
        the disk: ask for them on their own host.
        """
        supervisor = _small_record(self.node_process_path(node))
        found = [False if "ended" in supervisor else lives(supervisor)]
        try:
            parts = [_small_record(path) for path in self.control.glob("part_*.json")]
        except OSError:
            parts = []
        found += [lives(record) for record in parts if record.get("node", 0) == node]
        if any(found):
            return True
        return None in found and "ended" not in supervisor and self._beat_age() < LOST_AFTER_SECONDS

    def who(self) -> str:
        """Return on which host the run was started last, and when it gave its last sign of life there, in a few words."""
        host = _small_record(self.process_path).get("host", "an unknown host")
        return f"on {host}, last sign of life {max(0.0, self._beat_age()):.0f} s ago"

    def _beat_age(self) -> float:
        try:
            return time.time() - self.heartbeat_path.stat().st_mtime
        except OSError:
            return float("inf")

    def state(self, view: RunView) -> str:
        """Return one of `STATES`, from what the events say and from the signs of life."""
        alive = self.alive()
        if view.outcome in ("finished", "failed", "stopped") and not alive:
            return view.outcome
        if alive:
            return "stopping" if self.requested("stop") else "running"
        if view.outcome == "planned" and self.latest_checkpoint() is not None:  # its events are lost
            return "stopped"
        return "lost" if view.outcome == "running" else "planned"

    def view(self) -> RunView:
        """Return the view of all events so far."""
        fold = ViewFold()
        for records in EventReader(self.events_path).read_records():
            fold.feed_records(records)
        return fold.view()

    def size_bytes(self) -> int:
        """Return the size on disk of everything in the folder."""
        total = 0
        for root, _, names in os.walk(self.path):
            for name in names:
                try:
                    total += (Path(root) / name).lstat().st_size
                except OSError:
                    continue
        return total

    def delete(self) -> None:
        """Remove the run with all its checkpoints. Raises `MismatchError` while it runs."""
        if self.alive():
            raise MismatchError(f"{self.path}: is running.", hint=f"Stop it first: medsft stop {self.path}")
        # By another name first: a removal that is interrupted must not leave a run with some of its checkpoints.
        aside = self.path.with_name(f".{self.path.name}.removed")
        shutil.rmtree(aside, ignore_errors=True)
        self.path.rename(aside)
        shutil.rmtree(aside)


def _node_suffix(node: int) -> str:
    """Return what the names of a node's logs end with: nothing on node 0."""
    return f"-node{node}" if node else ""


def _small_record(path: Path) -> dict[str, Any]:
    """Return what a file in `control` says, nothing where it is missing or damaged."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def find_runs(folder: Path) -> list[RunDir]:
    """Return the runs directly under a folder, the latest first."""
    if not folder.is_dir():
        return []
    runs = [RunDir(entry) for entry in folder.iterdir() if not entry.name.startswith(".") and is_run(entry)]
    return sorted(runs, key=lambda run: run.plan_path.stat().st_mtime, reverse=True)
