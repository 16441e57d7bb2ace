"""The event log of a run: `events.jsonl`, one JSON object a line, appended by one writer and read by everybody.

    {"v": 1, "seq": 17, "time": 1764000000.123, "kind": "step", "iteration": 12, ...}

Readers skip kinds they do not know and keep a torn last line until the rest of it arrives. Events never hold record text.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import orjson

from medsft.core.disk import is_full
from medsft.errors import MismatchError

VERSION = 1
Kind = Literal[
    "run_started",
    "phase",
    "step",
    "eval",
    "eval_task",
    "checkpoint",
    "warning",
    "failed",
    "finished",
    "stopped",
    "benchmark",
]
TERMINAL: frozenset[str] = frozenset({"failed", "finished", "stopped"})
_CHUNK = 1 << 15
"""Bytes read at once. Few, so that what is made of a chunk is still in the processor's cache when it is used."""
_MOST_WAITING_BYTES = 16 << 20
"""Of events that a full disk has not taken yet: some 50,000 iterations."""
Record = dict[str, Any]
"""A line of the log as it stands there: the fields of its kind beside `v`, `seq`, `time` and `kind`."""


class Event(NamedTuple):  # a tuple, because a long log has 100,000
    """One line of the log. The fields of each kind:

    - ``run_started``: iteration (completed so far), total, world_size, layout, micro_batches, precision, host, resumed;
      keep_best where the accuracy in a benchmark decides
    - ``phase``: name (``loading``, ``training``, ``evaluating``, ``saving``, ``exporting``)
    - ``step``: iteration (from 1), total, loss, lr, grad_norm, tokens, supervised_tokens, tokens_per_second, step_seconds,
      eta_seconds, memory_bytes, epoch; loss_user where --loss_mask is not 0
    - ``eval``: iteration (0: before the first), loss, perplexity, accuracy, tokens, seconds
    - ``eval_task``: iteration (0: before the first), task, accuracy, interval (95 %), questions, seconds; of each `--eval_task`
    - ``checkpoint``: iteration, folder, bytes, seconds, stalled_seconds (how long training stood still for it)
    - ``warning``: message
    - ``failed``: reason, remedy, exit_code
    - ``finished``: iteration, export
    - ``stopped``: iteration
    - ``benchmark``: task, method, iteration, questions, accuracy, interval (95 %), file; after the run, by `medsft eval`
    """

    seq: int
    time: float
    kind: str
    data: Mapping[str, Any] = MappingProxyType({})

    def to_line(self) -> str:
        """Return the line for the log, newline included. Numbers that are not finite become null."""
        record = {"v": VERSION, "seq": self.seq, "time": round(self.time, 3), "kind": self.kind, **_finite(self.data)}
        return json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n"


def _finite(data: Mapping[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in data.items()}


def parse(line: bytes) -> Event | None:
    """Return the event of one complete line, or None for a line that is not one."""
    record = _record(line)
    return None if record is None else event_of(record)


def event_of(record: Record) -> Event | None:
    """Return a record, which becomes its data, as an event; None for one that is none."""
    try:
        pop = record.pop
        event = Event(int(pop("seq")), float(pop("time")), str(pop("kind")), record)
        pop("v", None)
        return event
    except (KeyError, TypeError, ValueError):
        return None


class EventWriter:
    """Appends events to a log. There is one writer at a time: the reporting rank, or after its death the supervisor.

    What a full disk does not take waits in memory and is written as soon as there is room: a log must not end a run that has
    hours of training in it, which its next checkpoint decides. In the log no event is missing, and none is torn.
    """

    def __init__(self, path: Path) -> None:
        self._seq = _last_seq(path) + 1
        self._file = path.open("ab", buffering=0)
        self._waiting = bytearray()
        if path.stat().st_size and not _ends_with_newline(path):
            self._waiting += b"\n"  # a killed writer left half a line: close it, so that ours starts on a line of its own
            self._append()

    def write(self, kind: Kind, /, **data: Any) -> Event:
        """Append one event and return it. Raises `OSError` when the disk fails; when it is full only for the last of a run."""
        event = Event(self._seq, time.time(), kind, data)
        self._waiting += event.to_line().encode()
        self._seq += 1
        self._append(or_raise=kind in TERMINAL)
        if kind in TERMINAL or kind == "checkpoint":
            os.fsync(self._file.fileno())
        return event

    def _append(self, *, or_raise: bool = False) -> None:
        try:
            while self._waiting:
                del self._waiting[: self._file.write(self._waiting)]
        except OSError as error:
            if or_raise or not is_full(error) or len(self._waiting) > _MOST_WAITING_BYTES:
                raise

    def close(self) -> None:
        """Close the log."""
        self._file.close()


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _last_seq(path: Path) -> int:
    """Return the number of the last complete event, -1 when there is none. Reads the end of the file, if that has one."""
    if not path.exists():
        return -1
    size = path.stat().st_size
    for tail in (64 * 1024, size):  # the whole file, where a damaged end hides the last event
        with path.open("rb") as file:
            file.seek(max(0, size - tail))
            lines = file.read().split(b"\n")
        for line in reversed(lines):
            event = parse(line)
            if event is not None:
                return event.seq
    return -1


class EventReader:
    """Reads a log that may still grow. `read` returns what is new since the last call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._rest = b""

    def read(self) -> list[Event]:
        """Return the complete events appended since the last call, possibly none."""
        return [event for records in self.read_records() for record in records if (event := event_of(record)) is not None]

    def read_records(self) -> Iterator[list[Record]]:
        """Yield what `read` returns bit by bit, as it is in the log: an object for each takes as long as the parsing of it.

        Raises `MismatchError` when the log is there and cannot be read.
        """
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return
        except OSError as error:
            raise MismatchError(f"{self._path}: cannot be read: {error.strerror or error}.") from None
        with file:
            file.seek(self._offset)
            while chunk := file.read(_CHUNK):
                self._offset += len(chunk)
                whole, newline, self._rest = (self._rest + chunk).rpartition(b"\n")
                if newline:
                    yield _records(whole)


def _records(text: bytes) -> list[Record]:
    """Return the records of complete lines. One call of the JSON parser for all is twice as fast as one a line."""
    breaks = text.count(b"\n")
    if text.startswith(b"{") and text.endswith(b"}") and text.count(b"}\n{") == breaks:
        try:
            records = orjson.loads(b"[" + text.replace(b"\n", b",") + b"]")
            if len(records) == breaks + 1:
                return records
        except ValueError:
            pass  # a damaged line among them: find it line by line
    return [record for line in text.split(b"\n") if (record := _record(line)) is not None]


def _record(line: bytes) -> Record | None:
    try:
        record = orjson.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def tail(path: Path, *, poll_seconds: float = 0.25, ended: Callable[[], bool] | None = None) -> Iterator[Event]:
    """Yield all events of a log and go on as it grows, until `ended` says that nobody writes any more (never by default)."""
    reader = EventReader(path)
    while True:
        over = ended is not None and ended()  # asked before reading, so that what was written until then is still read
        events = reader.read()
        yield from events
        if over:
            return
        if not events:
            time.sleep(poll_seconds)
