"""The nodes of a run while it trains, as the supervisor of each sees the others. Node 0 decides how the run ends."""

from __future__ import annotations

import time
from queue import SimpleQueue

from medsft.core.cluster.connection import Hub, News, Wire, connect, error_of, next_news
from medsft.core.cluster.rendezvous import SHARED_SECONDS, name_nodes
from medsft.core.run.launch import Launch
from medsft.errors import ExitCode, LaunchError, MedsftError

_MEET_SECONDS = SHARED_SECONDS + 10
"""All have joined before: what is left is to see the start on the shared folder."""


class Company:
    """The other nodes. With one node there is nobody, and nothing ever comes."""

    def __init__(self, launch: Launch, node: int) -> None:
        self._launch, self._node = launch, node
        self._inbox: SimpleQueue[News] = SimpleQueue()
        self._nodes: dict[Wire, int] = {}
        self._hub: Hub | None = None
        self._wire: Wire | None = None
        self._dismissed = False
        self.codes: dict[int, int] = {}
        """On node 0: how the ranks of the other nodes ended, by node."""

    def meet(self) -> None:
        """Connect with the others. Raises `LaunchError` when one does not come."""
        deadline = time.monotonic() + _MEET_SECONDS
        if self._launch.nodes > 1 and self._node == 0:
            self._gather(deadline)
        elif self._launch.nodes > 1:
            self._report_to_node_0(deadline)

    def _gather(self, deadline: float) -> None:
        self._hub = Hub(self._launch.port + 1, self._inbox)
        while missing := [n for n in range(1, self._launch.nodes) if n not in self._nodes.values()]:
            if time.monotonic() > deadline:
                raise LaunchError(f"Lost on the way: {name_nodes(missing)} joined, but did not start.")
            self.watch(0.5)

    def _report_to_node_0(self, deadline: float) -> None:
        """Connect, more than once where the command that called the roll on node 0 is still closing the same port."""
        addr, port = self._launch.addr, self._launch.port + 1
        assert addr is not None
        while (left := deadline - time.monotonic()) > 0 and (wire := connect(addr, port, self._inbox, seconds=left)):
            wire.send("present", rank=self._node, start=self._launch.start)
            news = next_news(self._inbox, max(0.0, deadline - time.monotonic()))
            if news is not None and news.kind == "welcome":
                self._wire, self._nodes = wire, {wire: 0}
                return
            wire.close()
            if news is not None and news.kind == "end":
                raise error_of(news)
            time.sleep(0.2)
        raise LaunchError(f"Node 0 is lost: it does not answer at {addr}, port {port}.")

    def watch(self, seconds: float) -> bool:
        """Wait for news, up to so long, and return whether the ranks of some other node have failed.

        Raises `LaunchError` when a node is lost, and on the others what node 0 says has ended the run.
        """
        news = next_news(self._inbox, seconds)
        if news is not None:
            self._take(news)
        return any(self.codes.values())

    def _take(self, news: News) -> None:
        if news.kind == "present" and news.data["start"] == self._launch.start:
            self._nodes[news.wire] = int(news.data["rank"])
            news.wire.send("welcome")
        elif news.kind in ("present", "join"):
            news.wire.send(
                "end",
                reason="Node 0 is running already, since an earlier start.",
                remedy="Stop the run, then start all nodes again.",
                exit_code=int(ExitCode.LAUNCH),
            )
        elif news.wire not in self._nodes:
            return  # a stranger that knocked at the port
        elif news.kind == "ended":
            self.codes[self._nodes[news.wire]] = int(news.data["code"])
        elif news.kind == "dismissed":
            self._dismissed = True
        elif not self._dismissed and self._nodes[news.wire] not in self.codes:
            raise error_of(news, f"Node {self._nodes[news.wire]}")

    def wait(self, seconds: float) -> bool:
        """On node 0: wait until the ranks of all other nodes have ended, and return whether they have. Raises as `watch`."""
        deadline = time.monotonic() + seconds
        while not (complete := len(self.codes) == self._launch.nodes - 1) and time.monotonic() < deadline:
            self.watch(0.2)
        return complete

    def report(self, code: int) -> None:
        """On the others: tell node 0 how this node's ranks ended, and wait for its word. Raises as `watch`."""
        assert self._wire is not None
        self._wire.send("ended", code=code)
        while not self._dismissed:
            self.watch(1.0)

    def dismiss(self, error: MedsftError | None = None) -> None:
        """On node 0: tell the others that the run is over, and why if it failed."""
        if self._hub is None:
            return
        if error is None:
            self._hub.send("dismissed")
        else:
            self._hub.send("end", reason=error.message, remedy=error.hint, exit_code=int(error.exit_code))

    def close(self) -> None:
        """Close the connections, once what was sent has arrived."""
        if self._hub is not None:
            self._hub.close()
        if self._wire is not None:
            self._wire.close()
