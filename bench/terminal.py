"""A terminal without a screen: what a program writes to it, and when, is what a person would see."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import termios
import time
from collections.abc import Sequence
from types import TracebackType

_LIMIT_SECONDS = 60


class Terminal:
    """Runs `command` in a pseudo-terminal of `size` (columns, rows); leaving the context ends it.

    Seconds count from the start of the program or from the latest key, until what was awaited has come.
    """

    def __init__(self, command: Sequence[str], size: tuple[int, int]) -> None:
        self._since = time.perf_counter()
        self._seen = b""
        self._child, self._file = pty.fork()
        if self._child == 0:
            os.environ.update(TERM="xterm-256color", COLUMNS=str(size[0]), LINES=str(size[1]))
            os.execvp(command[0], list(command))
        fcntl.ioctl(self._file, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.kill(self._child, 9)
        os.waitpid(self._child, 0)
        os.close(self._file)

    def until(self, pattern: bytes) -> float:
        """Return after how many seconds the output matched. Raises `TimeoutError` after a minute, `OSError` at its end."""
        while not re.search(pattern, self._seen):
            left = self._since + _LIMIT_SECONDS - time.perf_counter()
            if not select.select([self._file], [], [], max(0.0, left))[0]:
                raise TimeoutError(f"The terminal never showed {pattern!r}.")
            self._seen += os.read(self._file, 1 << 16)
        return time.perf_counter() - self._since

    def press(self, key: bytes) -> None:
        """Type a key; what is awaited next has to come after it."""
        while select.select([self._file], [], [], 0)[0]:
            os.read(self._file, 1 << 16)
        self._seen = b""
        self._since = time.perf_counter()
        os.write(self._file, key)

    def rest(self, seconds: float) -> None:
        """Let time pass, and read what comes, so that the program never waits for its terminal."""
        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0:
            if select.select([self._file], [], [], left)[0]:
                os.read(self._file, 1 << 16)
