"""Connections between the nodes of a run: one JSON object a line, with heartbeats from both ends.

A process that dies closes its sockets, and the other end notices. A cut link or a machine without power closes nothing: gloo
and NCCL then wait for their own timeouts, half an hour and more. So both ends send a heartbeat every few seconds, and an end
that receives nothing for `SILENCE_SECONDS` takes the other for lost. A shared folder cannot tell that: it may work on while the
link is cut.
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

from medsft.errors import Failure, LaunchError, MedsftError, ReportedError

HEARTBEAT_SECONDS = 2.0
SILENCE_SECONDS = 30.0
"""Longer than a network takes to find another route, and short enough for all nodes to end within a minute."""
_FLUSH_SECONDS = 5.0
_ACCEPT_SECONDS = 0.2
_LONGEST_LINE = 1 << 20

StatusCallback = Callable[[str], None]
"""Shows a line to the person who waits."""


class Message(NamedTuple):
    """One message, and the connection it came by. Kind `lost` (with a `reason`) is the last one of a connection that failed."""

    connection: Connection
    kind: str
    data: dict[str, Any]


Inbox = SimpleQueue[Message]
"""Where all connections of a process put what they receive."""


class Connection:
    """One end of a connection. One thread receives into the inbox, another sends heartbeats."""

    def __init__(self, connected: socket.socket, inbox: Inbox) -> None:
        connected.settimeout(SILENCE_SECONDS)
        self._socket = connected
        self._inbox = inbox
        self._sending = threading.Lock()
        self._closed = threading.Event()
        self._reader = threading.Thread(target=self._receive, daemon=True)

    def start(self) -> Connection:
        """Begin to receive and to send heartbeats, and return this connection."""
        self._reader.start()
        threading.Thread(target=self._send_heartbeats, daemon=True).start()
        return self

    def send(self, kind: str, **data: Any) -> None:
        """Send a message. When the other end is gone, the receiving thread reports that, not this method."""
        line = json.dumps({"kind": kind, **data}).encode() + b"\n"
        with suppress(OSError), self._sending:
            self._socket.sendall(line)

    def finish_sending(self) -> None:
        """Tell the other end that nothing more will be sent."""
        self._closed.set()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close after the other end has read everything: closing with its heartbeats unread would discard what is under way."""
        self.finish_sending()
        self._reader.join(_FLUSH_SECONDS)
        self._socket.close()

    def _send_heartbeats(self) -> None:
        while not self._closed.wait(HEARTBEAT_SECONDS):
            self.send("beat")

    def _receive(self) -> None:
        try:
            with self._socket.makefile("rb") as lines:
                while line := lines.readline(_LONGEST_LINE):
                    data = json.loads(line)
                    kind = data.pop("kind")
                    if kind != "beat":
                        self._inbox.put(Message(self, kind, data))
            reason = "its connection was closed"
        except TimeoutError:
            reason = f"it sent nothing for {SILENCE_SECONDS:.0f} seconds"
        except OSError as error:
            reason = f"its connection failed: {error.strerror or error}"
        except (ValueError, KeyError, TypeError, AttributeError):
            reason = "it sent an unexpected message"
        if not self._closed.is_set():
            self._inbox.put(Message(self, "lost", {"reason": reason}))
        self.finish_sending()


class Server:
    """Node 0's end: listens on a port, and keeps a connection to every process that connects."""

    def __init__(self, port: int, inbox: Inbox) -> None:
        self._inbox = inbox
        self._connections: list[Connection] = []
        try:
            self._listener = _listen(port)
        except OSError as error:
            raise LaunchError(
                f"Port {port} cannot be opened: {error.strerror}.",
                hint="Give another --port. The nodes use that port and the next one.",
            ) from None
        self._listener.settimeout(_ACCEPT_SECONDS)
        self._closing = threading.Event()
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connected, _ = self._listener.accept()
            except OSError:
                continue  # nobody connected in time, or the connection is closed again
            self._connections.append(Connection(connected, self._inbox))
            self._connections[-1].start()  # only now: the answer to its first message goes to all connections that are listed

    def send(self, kind: str, **data: Any) -> None:
        """Send a message over all connections."""
        for connection in self._connections:
            connection.send(kind, **data)

    def close(self) -> None:
        """Stop listening, and close all connections once what was sent has arrived."""
        self._closing.set()
        self._accepting.join()  # so that the latest connection is closed, too: its heartbeats would pass for a living run
        self._listener.close()
        for connection in self._connections:
            connection.finish_sending()
        for connection in self._connections:
            connection.close()


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def connect(addr: str, port: int, inbox: Inbox, *, seconds: float) -> Connection | None:
    """Connect to a `Server`, trying again until it listens; None when it does not within `seconds`.

    Raises `LaunchError` for a name that cannot be resolved.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            return Connection(socket.create_connection((addr, port), timeout=5.0), inbox).start()
        except socket.gaierror as error:
            raise LaunchError(f"--addr {addr}: {error.strerror}.", hint="Give the name or the IP address of node 0.") from None
        except OSError:
            time.sleep(0.3)
    return None


def receive(inbox: Inbox, seconds: float) -> Message | None:
    """Return the next message, or None when none arrives in time."""
    try:
        return inbox.get(timeout=seconds)
    except Empty:
        return None


def error_from(message: Message, node: int = 0) -> MedsftError:
    """Return the error that ended another node: as it reported it (`end`), or that its connection is lost (`lost`)."""
    if message.kind == "lost":
        return LaunchError(f"Node {node} is lost: {message.data.get('reason')}.")
    if message.kind != "end":
        return LaunchError(f"Node {node} sent an unexpected message.")
    return ReportedError(Failure.from_json(message.data))
