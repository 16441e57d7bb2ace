"""Connections between the nodes of a run: JSON, an object a line, with signs of life from both ends.

A process that dies closes its sockets, and everybody notices. A cut link or a machine without power closes nothing: gloo and
NCCL then wait for their own timeouts, half an hour and more. So both ends of a wire speak every few seconds, and silence
means that the other is lost. A shared folder cannot tell that: it may work on while the link is cut.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from medsft.errors import ExitCode, LaunchError, MedsftError

BEAT_SECONDS = 2.0
SILENT_SECONDS = 30.0
"""Longer than a network takes to find another way, and short enough for all nodes to end within a minute."""
_FLUSH_SECONDS = 5.0
_ACCEPT_SECONDS = 0.2
_LONGEST_LINE = 1 << 20


class News(NamedTuple):
    """One message, and the wire it came by. `lost` (with a `reason`) is the last one of a wire that broke."""

    wire: Wire
    kind: str
    data: dict[str, Any]


class Wire:
    """One end of a connection. Two threads read and beat; what arrives is put into a queue."""

    def __init__(self, connection: socket.socket, inbox: SimpleQueue[News]) -> None:
        connection.settimeout(SILENT_SECONDS)
        self._connection = connection
        self._inbox = inbox
        self._sending = threading.Lock()
        self._closed = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)

    def start(self) -> Wire:
        """Begin to read and to beat, and return this wire."""
        self._reader.start()
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def send(self, kind: str, **data: Any) -> None:
        """Send a message. That the other end is gone is told by the reading thread, not here."""
        line = json.dumps({"kind": kind, **data}).encode() + b"\n"
        with suppress(OSError), self._sending:
            self._connection.sendall(line)

    def finish(self) -> None:
        """Say that nothing more will be sent."""
        self._closed.set()
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close, after the other end has read everything: closing with its beats unread would discard what is on its way."""
        self.finish()
        self._reader.join(_FLUSH_SECONDS)
        self._connection.close()

    def _beat(self) -> None:
        while not self._closed.wait(BEAT_SECONDS):
            self.send("beat")

    def _read(self) -> None:
        try:
            with self._connection.makefile("rb") as lines:
                while line := lines.readline(_LONGEST_LINE):
                    message = json.loads(line)
                    kind = message.pop("kind")
                    if kind != "beat":
                        self._inbox.put(News(self, kind, message))
            reason = "its connection was closed"
        except TimeoutError:
            reason = f"nothing was heard of it for {SILENT_SECONDS:.0f} seconds"
        except OSError as error:
            reason = f"its connection broke: {error.strerror or error}"
        except (ValueError, KeyError, TypeError, AttributeError):
            reason = "it sent something else than medsft does"
        if not self._closed.is_set():
            self._inbox.put(News(self, "lost", {"reason": reason}))
        self.finish()


class Hub:
    """Node 0's end: listens, and keeps a wire to everybody who comes."""

    def __init__(self, port: int, inbox: SimpleQueue[News]) -> None:
        self._inbox = inbox
        self._wires: list[Wire] = []
        try:
            self._listener = _listen(port)
        except OSError as error:
            raise LaunchError(
                f"Port {port} cannot be opened: {error.strerror}.",
                hint="Give another --port; the nodes talk on it and on the one after it.",
            ) from None
        self._listener.settimeout(_ACCEPT_SECONDS)
        self._closing = threading.Event()
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                continue  # nobody came in time, or who came has left again
            self._wires.append(Wire(connection, self._inbox))
            self._wires[-1].start()  # only now: an answer to what it brings goes to all wires that are listed

    def send(self, kind: str, **data: Any) -> None:
        """Send a message to everybody."""
        for wire in self._wires:
            wire.send(kind, **data)

    def close(self) -> None:
        """Stop listening, and close all wires once what was sent has arrived."""
        self._closing.set()
        self._accepting.join()  # so that whoever came last is closed too, and does not take its beats for a living run
        self._listener.close()
        for wire in self._wires:
            wire.finish()
        for wire in self._wires:
            wire.close()


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def connect(addr: str, port: int, inbox: SimpleQueue[News], *, seconds: float) -> Wire | None:
    """Connect to a hub, trying again until it listens; None when it does not within `seconds`.

    Raises `LaunchError` for a name that means no address.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            return Wire(socket.create_connection((addr, port), timeout=5.0), inbox).start()
        except socket.gaierror as error:
            raise LaunchError(f"--addr {addr}: {error.strerror}.", hint="Give the name or the IP address of node 0.") from None
        except OSError:
            time.sleep(0.3)
    return None


def next_news(inbox: SimpleQueue[News], seconds: float) -> News | None:
    """Return the next message, or None when none comes in time."""
    try:
        return inbox.get(timeout=seconds)
    except Empty:
        return None


def error_of(news: News, who: str = "Node 0") -> MedsftError:
    """Return the error that another node sent (`end`), or that its silence is (`lost`)."""
    if news.kind == "lost":
        return LaunchError(f"{who} is lost: {news.data['reason']}.")
    error = MedsftError(str(news.data["reason"]), hint=str(news.data["remedy"]))
    error.exit_code = ExitCode(news.data["exit_code"])
    return error


Tell = Callable[[str], None]
"""Shows a line to the person who waits."""
