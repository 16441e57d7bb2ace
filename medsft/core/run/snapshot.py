"""Snapshots of a run on disk, for the screens. Runs in a worker thread; knows nothing of Textual."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from medsft.core.printable import one_line
from medsft.core.run.events import EventReader
from medsft.core.run.listing import look
from medsft.core.run.rundir import RunDir
from medsft.core.run.view import RunView, ViewFold
from medsft.errors import MismatchError

POLL_SECONDS = 0.5
"""Two redraws a second at most: a terminal behind SSH does not like more."""
_KEPT_LINES = 1000
_TAIL_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A run as it is now. It carries everything, so a newer one may replace one that was not shown yet."""

    view: RunView
    state: str
    """One of `rundir.STATES`, or `listing.BROKEN`."""
    saved: tuple[int, ...]
    """Iterations of the checkpoints that are on disk: the events also tell of those that were removed since."""
    log: tuple[str, ...]
    """The latest lines of the launcher and of all ranks."""
    now: float
    """Unix time of the snapshot."""
    updated: float = 0.0
    """Unix time of what happened last in the run."""
    problem: str = ""
    """Why the run is broken, else nothing."""


class SnapshotReader:
    """Reads what is new in a run since the last look."""

    def __init__(self, run: RunDir, clock: Callable[[], float]) -> None:
        self._run = run
        self._clock = clock
        self._events = EventReader(run.events_path)
        self._fold = ViewFold()
        self._view = RunView()
        self._log = LogTail(run.logs)

    def look(self) -> Snapshot:
        """Return the run as it is now. Without new events the view is the same object as last time."""
        found = look(self._run, self._read)
        return Snapshot(
            view=found.view,
            state=found.state,
            saved=found.checkpoints,
            log=self._log.read(),
            now=self._clock(),
            updated=found.updated,
            problem=found.problem,
        )

    def _read(self) -> RunView:
        grown = False
        with suppress(MismatchError):  # a log that cannot be read; its folder still tells of checkpoints
            for records in self._events.read_records():
                self._fold.feed_records(records)
                grown = grown or bool(records)
        if grown:
            self._view = self._fold.view()
        return self._view


class LogTail:
    """The latest lines of all files in a folder of logs, in the order they are met."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets: dict[Path, int] = {}
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._shown: tuple[str, ...] = ()

    def read(self) -> tuple[str, ...]:
        """Return the latest lines. Of a file met for the first time only the end is read."""
        before = len(self._lines), dict(self._offsets)
        for path in self._files():
            self._read_file(path)
        if (len(self._lines), self._offsets) != before:
            self._shown = tuple(self._lines)
        return self._shown

    def _files(self) -> list[Path]:
        try:
            return sorted(path for path in self._folder.rglob("*") if path.is_file()) if self._folder.is_dir() else []
        except OSError:
            return []

    def _read_file(self, path: Path) -> None:
        try:
            size = path.stat().st_size
            start = self._offsets.get(path, max(0, size - _TAIL_BYTES))
            if size < start:  # written anew by a resume
                start = 0
            if size == start:
                return
            with path.open("rb") as file:
                file.seek(start)
                data = file.read(size - start)
        except OSError:
            return  # removed in between
        whole, newline, _ = data.rpartition(b"\n")
        self._offsets[path] = start + len(whole) + len(newline)
        name = _source(path)
        self._lines.extend(f"{name}: {_last_state(line)}" for line in whole.split(b"\n") if line.strip())


def _source(path: Path) -> str:
    """Name who wrote a log: the launcher keeps those of rank 3 in a folder `3`."""
    return f"rank {path.parent.name}" if path.parent.name.isdigit() else one_line(path.stem.replace("_", " "))


def _last_state(line: bytes) -> str:
    """Return the text after the last carriage return (a progress bar redraws its line), fit for a terminal."""
    return one_line(line.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", errors="replace"))
