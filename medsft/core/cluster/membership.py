"""The nodes of a run while it trains, as the supervisor of each sees the others. Node 0 decides how the run ends.

node 0:    accept all nodes <-- "register"       "ranks_ended" (exit code) -->  "run_ended", or "end" with the failure
others:    connect, register --> "registered"    train; report the exit code -->  wait for node 0's decision
"""

from __future__ import annotations

import time
from queue import SimpleQueue

from medsft.core.cluster.connection import Connection, Inbox, Message, Server, connect, error_from, receive
from medsft.core.cluster.rendezvous import SHARED_FOLDER_SECONDS, name_nodes
from medsft.core.run.launch import Launch
from medsft.errors import ExitCode, Failure, LaunchError

_CONNECT_SECONDS = SHARED_FOLDER_SECONDS + 10
"""All nodes have joined before: each has only to see the start on the shared folder, and to start its supervisor."""
_ALREADY_RUNNING = Failure(
    "Node 0 is running an earlier start of this run.", "Stop the run, then start all nodes again.", ExitCode.LAUNCH
)


class Membership:
    """The other nodes of a run. A run on one node has none, and `poll` never finds anything."""

    def __init__(self, launch: Launch, node: int) -> None:
        self._launch, self._node = launch, node
        self._inbox: Inbox = SimpleQueue()
        self._nodes: dict[Connection, int] = {}
        self._server: Server | None = None
        self._to_node_0: Connection | None = None
        self._run_ended = False
        self.exit_codes: dict[int, int] = {}
        """On node 0: how the ranks of the other nodes ended, by node."""

    def connect(self) -> None:
        """Connect the nodes. Raises `LaunchError` when one does not connect."""
        deadline = time.monotonic() + _CONNECT_SECONDS
        if self._launch.nodes > 1 and self._node == 0:
            self._accept_all(deadline)
        elif self._launch.nodes > 1:
            self._register(deadline)

    def _accept_all(self, deadline: float) -> None:
        self._server = Server(self._launch.port + 1, self._inbox)
        while missing := [n for n in range(1, self._launch.nodes) if n not in self._nodes.values()]:
            if time.monotonic() > deadline:
                whose = "its" if len(missing) == 1 else "their"
                raise LaunchError(f"{name_nodes(missing)} joined but {whose} processes did not start.")
            self.poll(0.5)

    def _register(self, deadline: float) -> None:
        """Register with node 0, again where the command that started the run there has not closed the same port yet."""
        addr, port = self._launch.addr, self._launch.port + 1
        assert addr is not None
        while (left := deadline - time.monotonic()) > 0 and (connection := connect(addr, port, self._inbox, seconds=left)):
            connection.send("register", rank=self._node, start=self._launch.start)
            message = receive(self._inbox, max(0.0, deadline - time.monotonic()))
            if message is not None and message.kind == "registered":
                self._to_node_0, self._nodes = connection, {connection: 0}
                return
            connection.close()
            if message is not None and message.kind == "end":
                raise error_from(message)
            time.sleep(0.2)
        raise LaunchError(f"Node 0 does not answer at {addr}, port {port}.")

    def poll(self, seconds: float) -> bool:
        """Wait up to `seconds` for a message, and return whether the ranks of some other node have failed.

        Raises `LaunchError` when a node is lost, and on the others `ReportedError` with what node 0 says has ended the run.
        """
        message = receive(self._inbox, seconds)
        if message is not None:
            self._handle(message)
        return any(self.exit_codes.values())

    def _handle(self, message: Message) -> None:
        connection, kind, data = message
        if kind == "register" and data.get("start") == self._launch.start:
            self._nodes[connection] = int(data["rank"])
            connection.send("registered")
        elif kind in ("register", "join"):
            connection.send("end", **_ALREADY_RUNNING.to_json())
        elif connection not in self._nodes:
            return  # not a node of this run: something else has connected to the port
        elif kind == "ranks_ended":
            self.exit_codes[self._nodes[connection]] = int(data["code"])
        elif kind == "run_ended":
            self._run_ended = True
        elif not self._run_ended and self._nodes[connection] not in self.exit_codes:
            raise error_from(message, self._nodes[connection])

    def wait_for_ranks(self, seconds: float) -> bool:
        """On node 0: wait until the ranks of all other nodes have ended, and return whether they have. Raises as `poll`."""
        deadline = time.monotonic() + seconds
        while not (complete := len(self.exit_codes) == self._launch.nodes - 1) and time.monotonic() < deadline:
            self.poll(0.2)
        return complete

    def report_exit_code(self, code: int) -> None:
        """On the others: tell node 0 how this node's ranks ended, and wait until it ends the run. Raises as `poll`."""
        assert self._to_node_0 is not None
        self._to_node_0.send("ranks_ended", code=code)
        while not self._run_ended:
            self.poll(1.0)

    def announce_end(self, failure: Failure | None = None) -> None:
        """On node 0: tell the others that the run has ended, and why if it failed."""
        if self._server is None:
            return
        if failure is None:
            self._server.send("run_ended")
        else:
            self._server.send("end", **failure.to_json())

    def close(self) -> None:
        """Close the connections, once what was sent has arrived."""
        if self._server is not None:
            self._server.close()
        if self._to_node_0 is not None:
            self._to_node_0.close()
