"""The processes of a run: a record that identifies each, and how each ends when the process that started it has ended.

    supervisor --starts--> launcher --starts--> ranks        --starts--> export
        dies:              SIGTERM (from Linux)  SIGTERM (each looks)     SIGTERM
                           dies:                 SIGTERM (from the supervisor, and each looks for its parent)

On SIGTERM ranks that train save a checkpoint and end; until then their records show them as living.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

PARENT_VARIABLE = "MEDSFT_PARENT"
"""Environment variable of a process that must not outlive another: the id of that one."""
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
"""Of linux/prctl.h."""
_LOOK_SECONDS = 1.0


def record_of(pid: int) -> dict[str, Any]:
    """Return what tells a process from every other, later ones with its number included."""
    return {
        "host": socket.gethostname(),
        "namespace": _namespace(),
        "pid": pid,
        "started": psutil.Process(pid).create_time(),
    }


def lives(record: Mapping[str, Any]) -> bool | None:
    """Tell whether the process of a record still lives; None where it cannot be seen: on another host, in another container."""
    if not record:
        return False
    if record.get("host") != socket.gethostname() or record.get("namespace", _namespace()) != _namespace():
        return None
    try:
        process = psutil.Process(int(record["pid"]))
        same = abs(process.create_time() - float(record["started"])) < 2.0
        return same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, KeyError, ValueError, TypeError):
        return False


def _namespace() -> str:
    """Return which process numbers this process sees: containers of one host may share its name."""
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - not the path of a file
    except OSError:
        return ""


def die_with(parent: int) -> None:
    """In a process just forked: have Linux send it SIGTERM when the thread that forked it is gone, and end if it is already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of all that one's children leave behind when they are killed, so that it can be found and ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_children(*, seconds: float) -> None:
    """Send SIGTERM to all processes below this one, and SIGKILL to those that do not end within `seconds`."""
    left = psutil.Process().children(recursive=True)
    for process in left:
        _send(process, signal.SIGTERM)
    _, left = psutil.wait_procs(left, timeout=seconds)
    for process in left:
        _send(process, signal.SIGKILL)
    psutil.wait_procs(left, timeout=10)


def _send(process: psutil.Process, number: int) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def end_with_parent(parent: int, *, patience: float, meanwhile: Callable[[], None] = lambda: None) -> None:
    """From now on, send this process SIGTERM when its parent is not `parent` (any more), and end it `patience` seconds later.

    `meanwhile` is called about every second.
    """
    threading.Thread(target=_watch_parent, args=(parent, patience, meanwhile), daemon=True, name="watches the parent").start()


def _watch_parent(parent: int, patience: float, meanwhile: Callable[[], None]) -> None:
    while os.getppid() == parent:
        meanwhile()
        time.sleep(_LOOK_SECONDS)
    sys.stderr.write("The process that started this one has ended: ending, too.\n")
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGTERM)
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        meanwhile()
        time.sleep(_LOOK_SECONDS)
    os._exit(128 + signal.SIGTERM)


def started_by(words: str) -> bool:
    """Tell whether the command line of this process's parent has `words` in it."""
    try:
        return words in psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return False


class HeldFolder:
    """A folder that is held open, so that it is found again where somebody moved it, and missed when it was removed."""

    def __init__(self, path: Path) -> None:
        """Open it. Raises `OSError` when it is not there."""
        self.path = path
        self._handle = os.open(path, os.O_RDONLY)
        self._identity = self._stat(self._handle)

    def is_in_place(self) -> bool:
        """Tell whether the folder still has its path. Checked twice: network file systems may lose sight of it."""
        if self._has_its_path():
            return True
        time.sleep(0.3)
        return self._has_its_path()

    def _has_its_path(self) -> bool:
        try:
            return self._stat(self.path) == self._identity
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:  # a file system that does not answer has moved nothing
            return True

    def where(self) -> Path | None:
        """Return where the folder is now; None when it was removed, or where the system does not say."""
        try:
            path = Path(os.readlink(f"/proc/self/fd/{self._handle}"))  # noqa: PTH115 - not a link of a file system
            return path if self._stat(path) == self._identity else None
        except OSError:
            return None

    @staticmethod
    def _stat(of: Path | int) -> tuple[int, int]:
        found = os.stat(of)  # noqa: PTH116 - of a handle, too
        return found.st_dev, found.st_ino
