"""The folder of a run: the only meeting point of training, CLI and wizard, and the only module that knows its file names.

plan.json                             the frozen plan; written first, so a folder with a plan is a run
events.jsonl                          what happens (see `events`)
.status.txt                           one line for people, as the original wrote it
latest_checkpointed_iteration.txt     the tracker: number of the latest complete checkpoint
iter_0000800/                         a checkpoint; it exists when its name does
logs/                                 output of the launcher and of each rank
control/                              stop, save (requests), process.json, heartbeat; process_node_N.json, end_node_N.json
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from medsft.core.files import write_atomically
from medsft.core.printable import one_line
from medsft.core.run.events import EventReader
from medsft.core.run.view import RunView, ViewFold
from medsft.errors import MismatchError

HEARTBEAT_SECONDS = 5.0
LOST_AFTER_SECONDS = 60.0
STATES = ("planned", "running", "stopping", "stopped", "finished", "failed", "lost")


@dataclass(frozen=True, slots=True)
class RunDir:
    """Paths and small files of one run. Holds no state of its own: everything is on disk."""

    path: Path

    @property
    def plan_path(self) -> Path:
        """The frozen plan."""
        return self.path / "plan.json"

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
    def process_path(self) -> Path:
        """Who runs it: host, process id, and start time of that process."""
        return self.node_process_path(0)

    def node_process_path(self, node: int) -> Path:
        """Who runs it on a node; node 0 counts for the whole run."""
        return self.control / (f"process_node_{node}.json" if node else "process.json")

    def end_path(self, node: int) -> Path:
        """How the run ended on a node other than 0: reason, remedy and exit code. Node 0 writes an event."""
        return self.control / f"end_node_{node}.json"

    def checkpoint_path(self, iteration: int) -> Path:
        """Folder of one checkpoint."""
        return self.path / f"iter_{iteration:07d}"

    def exists(self) -> bool:
        """Tell whether this folder is a run."""
        return self.plan_path.is_file()

    def create(self, plan_json: str) -> None:
        """Make the folder and write the plan once. Raises `FileExistsError` when a plan is there already."""
        for folder in (self.path, self.logs, self.control):
            folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.plan_path, plan_json, replace=False)

    def read_plan(self) -> dict[str, Any]:
        """Return the plan as it was written. Raises `MismatchError` when there is none or it is damaged."""
        try:
            return json.loads(self.plan_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise MismatchError(f"{self.path}: not a run; there is no plan.json.") from None
        except ValueError as error:
            raise MismatchError(f"{self.plan_path}: damaged: {error}") from None

    def checkpoints(self) -> list[int]:
        """Return the iterations of the checkpoints, ascending. Unfinished saves have other names."""
        return iterations_in(self.path)

    def latest_checkpoint(self) -> int | None:
        """Return the iteration the tracker names, or None."""
        try:
            return int(self.tracker_path.read_text().strip())
        except (FileNotFoundError, ValueError):
            return None

    def set_latest_checkpoint(self, iteration: int) -> None:
        """Move the tracker; call it only when the checkpoint is durable."""
        write_atomically(self.tracker_path, str(iteration))

    def write_status(self, line: str, *, fresh: bool = False) -> None:
        """Append a line to `.status.txt`, or start the file anew."""
        with (self.path / ".status.txt").open("w" if fresh else "a", encoding="utf-8") as file:
            file.write(one_line(line) + "\n")

    def request(self, what: str) -> None:
        """Ask the run for something at its next step: `stop` or `save`."""
        self.control.mkdir(parents=True, exist_ok=True)
        (self.control / what).touch()

    def requested(self, what: str) -> bool:
        """Tell whether somebody has asked for it."""
        return (self.control / what).exists()

    def clear_request(self, what: str) -> None:
        """Take a request back, because it was met or is of an earlier start."""
        (self.control / what).unlink(missing_ok=True)

    def beat(self) -> None:
        """Give a sign of life."""
        self.heartbeat_path.touch()

    def claim(self, pid: int, *, node: int = 0) -> None:
        """Note the process that runs this run on a node."""
        record = {"host": socket.gethostname(), "pid": pid, "started": psutil.Process(pid).create_time()}
        write_atomically(self.node_process_path(node), json.dumps(record))
        if node == 0:
            self.beat()

    def alive(self, node: int = 0) -> bool:
        """Tell whether a process works on this run: by its id on the same host, elsewhere by its heartbeat.

        Nodes other than 0 give no sign of life on the disk: ask for them on their own host.
        """
        try:
            record = json.loads(self.node_process_path(node).read_text())
        except (FileNotFoundError, ValueError):
            return False
        if record.get("host") != socket.gethostname():
            return self._beat_age() < LOST_AFTER_SECONDS
        try:
            process = psutil.Process(int(record["pid"]))
            same = abs(process.create_time() - float(record["started"])) < 2.0
            return same and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.Error, KeyError, ValueError):
            return False

    def _beat_age(self) -> float:
        try:
            return time.time() - self.heartbeat_path.stat().st_mtime
        except FileNotFoundError:
            return float("inf")

    def state(self, view: RunView) -> str:
        """Return one of `STATES`, from what the events say and from the signs of life."""
        alive = self.alive()
        if view.outcome in ("finished", "failed", "stopped") and not alive:
            return view.outcome
        if alive:
            return "stopping" if self.requested("stop") else "running"
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
                except FileNotFoundError:
                    continue
        return total

    def delete(self) -> None:
        """Remove the run with all its checkpoints. Raises `MismatchError` while it runs."""
        if self.alive():
            raise MismatchError(f"{self.path}: is running.", hint=f"Stop it first: medsft stop {self.path}")
        shutil.rmtree(self.path)


def iterations_in(folder: Path) -> list[int]:
    """Return the numbers of the `iter_NNNNNNN` folders in `folder`, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(m[1]) for entry in folder.iterdir() if (m := re.fullmatch(r"iter_(\d{7})", entry.name)))


def find_runs(folder: Path) -> list[RunDir]:
    """Return the runs directly under a folder, the latest first."""
    if not folder.is_dir():
        return []
    runs = [RunDir(entry) for entry in folder.iterdir() if (entry / "plan.json").is_file()]
    return sorted(runs, key=lambda run: run.plan_path.stat().st_mtime, reverse=True)
