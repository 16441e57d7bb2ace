"""Nodes on this machine's loopback: who they are, and what they say to each other."""

from __future__ import annotations

import socket
import threading
import time
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest

from medsft.core.cluster import connection, rendezvous
from medsft.core.cluster.connection import Connection, Inbox, Server, connect, receive
from medsft.core.cluster.membership import Membership
from medsft.core.cluster.rendezvous import source_hash, start_node
from medsft.core.config.run_config import RunConfig
from medsft.core.planning.layout import Layout
from medsft.core.run.launch import Launch
from medsft.errors import ConfigError, DataError, ExitCode, LaunchError, MedsftError, MismatchError


@pytest.fixture
def port() -> int:
    """A free port with a free one behind it."""
    while True:
        with socket.create_server(("", 0)) as one:
            number = one.getsockname()[1]
            try:
                socket.create_server(("", number + 1)).close()
            except OSError:
                continue
            return number


def config(port: int, rank: int, **changes) -> RunConfig:
    return RunConfig(**{"run_name": "r", "nodes": 2, "addr": "127.0.0.1", "port": port, "rank": rank, **changes})


def refuse():
    raise DataError("train.jsonl:3: no answer")


def outcomes(*configs: RunConfig) -> list[MedsftError]:
    """What each node ends with when all are started at once."""
    found: dict[int, MedsftError] = {}

    def start(number: int) -> None:
        try:
            start_node(configs[number], refuse)
        except MedsftError as error:
            found[number] = error

    threads = [threading.Thread(target=start, args=(number,)) for number in range(len(configs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [found[number] for number in range(len(configs))]


def test_what_ends_node_0_ends_all(port):
    for error in outcomes(config(port, 0, nodes=3), config(port, 1, nodes=3), config(port, 2, nodes=3)):
        assert (error.exit_code, error.message) == (ExitCode.DATA, "train.jsonl:3: no answer")


def test_flags_that_differ_are_all_named_on_every_node(port, monkeypatch):
    monkeypatch.setattr(rendezvous, "_GRACE_SECONDS", 1.0)
    for error in outcomes(config(port, 0, tp=1), config(port, 1, lr=1e-3)):
        assert error.exit_code == ExitCode.MISMATCH
        assert "--lr: 2e-05 on node 0, 0.001 on node 1" in error.message
        assert "--tp: 1 on node 0, not given on node 1" in error.message


def test_two_nodes_of_one_rank(port, monkeypatch):
    monkeypatch.setattr(rendezvous, "_GRACE_SECONDS", 1.0)
    for error in outcomes(config(port, 0, nodes=3), config(port, 1, nodes=3), config(port, 1, nodes=3)):
        assert error.exit_code == ExitCode.MISMATCH
        assert "--rank 1 is on" in error.message


def test_other_source_code(port, monkeypatch):
    made = iter([{"torch": "1"}, {"torch": "2"}])
    monkeypatch.setattr(rendezvous, "_software", lambda: next(made))
    for error in outcomes(config(port, 0), config(port, 1)):
        assert error.exit_code == ExitCode.MISMATCH
        assert "torch: " in error.message


def test_the_hash_sees_every_change_of_the_source(tmp_path):
    (tmp_path / "a.py").write_text("x = 1")
    seen = {source_hash(tmp_path)}
    for change in (("a.py", "x = 2"), ("b.py", ""), ("deep/c.py", "")):
        source_hash.cache_clear()
        path = tmp_path / change[0]
        path.parent.mkdir(exist_ok=True)
        path.write_text(change[1])
        seen.add(source_hash(tmp_path))
    assert len(seen) == 4


def test_what_cannot_work_is_said_before_anybody_is_waited_for(port, monkeypatch):
    with pytest.raises(ConfigError, match="--addr"):
        start_node(config(port, 0, addr=None), refuse)
    with pytest.raises(ConfigError, match="--port"):
        start_node(config(65535, 0), refuse)
    for wrong in ("soon", "nan", "inf", "-1"):
        monkeypatch.setenv(rendezvous.JOIN_VARIABLE, wrong)
        with pytest.raises(ConfigError, match="MEDSFT_JOIN_SECONDS"):
            start_node(config(port, 1), refuse)
    with socket.create_server(("", port + 1)), pytest.raises(LaunchError, match=f"Port {port + 1} cannot be opened"):
        start_node(config(port, 0), refuse)


def test_a_message_sent_before_closing_arrives_and_silence_is_noticed(port, monkeypatch):
    monkeypatch.setattr(connection, "SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(connection, "HEARTBEAT_SECONDS", 0.1)
    inbox: Inbox = SimpleQueue()
    server = Server(port, SimpleQueue())
    connect("127.0.0.1", port, inbox, seconds=5)
    assert receive(inbox, 1.5) is None  # heartbeats keep the connection
    server.send("end", reason="why")
    server.close()
    assert receive(inbox, 5)[1:] == ("end", {"reason": "why"})
    assert receive(inbox, 5).data["reason"] == "its connection was closed"
    with socket.create_server(("", port)):
        connect("127.0.0.1", port, inbox, seconds=5)
        assert "it sent nothing" in receive(inbox, 5).data["reason"]


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b'{"kind": "ranks_ended", "code": 1}\n'])
def test_strangers_at_the_port_do_no_harm(port, sent):
    membership = Membership(launch(port), 0)
    met = threading.Thread(target=membership.connect)
    met.start()
    inbox: Inbox = SimpleQueue()
    node = connect("127.0.0.1", port + 1, inbox, seconds=5)
    with socket.create_connection(("127.0.0.1", port + 1)) as stranger:
        stranger.sendall(sent)
    node.send("register", rank=1, start="this")
    met.join(30)
    assert not membership.poll(0.5)
    assert membership.exit_codes == {}
    membership.close()


def launch(port: int) -> Launch:
    layout = Layout(pp=1, dp=2, tp=1)
    facts: dict[str, Any] = {"nproc_per_node": 1, "micro_batch": 1, "num_micro_batches": 1, "addr": "127.0.0.1"}
    return Launch(layout=layout, nodes=2, port=port, start="this", **facts)


def test_a_node_that_is_started_while_the_run_goes_on_is_told_so(port):
    first, second = Membership(launch(port), 0), Membership(launch(port), 1)
    gathering = threading.Thread(target=first.connect)
    gathering.start()
    second.connect()
    gathering.join(30)
    joining = threading.Thread(target=lambda: late.extend(outcomes_of_one(port)))
    late: list[MedsftError] = []
    joining.start()
    while joining.is_alive():
        first.poll(0.1)
    assert "Node 0 is running an earlier start" in late[0].message
    first.announce_end(MismatchError("the end", hint="so").failure)
    with pytest.raises(MedsftError, match="the end") as ended:
        second.report_exit_code(0)
    assert ended.value.exit_code == ExitCode.MISMATCH
    second.close()
    first.close()


def outcomes_of_one(port: int) -> list[MedsftError]:
    return outcomes(config(port, 1))


@pytest.mark.parametrize("leaves", [False, True])
def test_who_comes_or_leaves_while_node_0_plans(port, leaves):
    boxes: list[Inbox] = [SimpleQueue(), SimpleQueue()]
    early: list[Connection] = []

    def come(box: Inbox) -> Connection:
        connected = connect("127.0.0.1", port + 1, box, seconds=10)
        connected.send("join", **rendezvous._node_facts(config(port, 1)))
        return connected

    def plan():
        joining.join(30)
        if leaves:
            early[0].close()
        else:
            come(boxes[1])
        time.sleep(0.5)
        return SimpleNamespace(config=config(port, 0), run_dir="/dev/null/nowhere")  # what comes next fails

    joining = threading.Thread(target=lambda: early.append(come(boxes[0])))
    joining.start()
    with pytest.raises((LaunchError, OSError)) as ended:
        start_node(config(port, 0), plan)
    if leaves:
        assert "Node 1 is lost: its connection was closed" in str(ended.value)
    else:
        assert receive(boxes[0], 10).data["reason"] == "/dev/null/nowhere: cannot be written: Not a directory."
        assert receive(boxes[1], 10).data["reason"] == "All 2 nodes have connected already."
