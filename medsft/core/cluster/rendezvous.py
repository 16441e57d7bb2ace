"""How the nodes of a run find each other, check that they run the same, and start it.

    node 0:    wait for all nodes -> tokenize, plan -> write the start -> "start" --+--> supervisor: `membership`
    others:    "join" -----------> wait --------------> read the start <------------'--> supervisor: `membership`

Nodes use the port after --port (torchrun has --port itself). The plan goes over the shared folder; the message says which start
of which run to read there, so that no node takes the plan or the launch of an earlier start for this one.
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import psutil

from medsft.core.cluster.connection import Connection, Inbox, Server, StatusCallback, connect, error_from, receive
from medsft.core.config.check import check
from medsft.core.config.options import flag
from medsft.core.config.run_config import RunConfig, to_mapping
from medsft.core.disk import writing_to
from medsft.core.gpus import visible_gpus
from medsft.core.planning.plan import RunPlan
from medsft.core.run.launch import read_launch, sole_start, spawn_supervisor, start, write_start
from medsft.core.run.rundir import RunDir
from medsft.errors import ConfigError, ExitCode, Failure, LaunchError, MedsftError, MismatchError, Problem

JOIN_VARIABLE = "MEDSFT_JOIN_SECONDS"
"""Environment variable: how long a node waits for the others to be started, 600 seconds when it is not set."""
_LONGEST_JOIN_SECONDS = 30 * 86400.0
_GRACE_SECONDS = 5.0
"""How long node 0 still listens when nodes differ, so that those that are just being started get the reason too."""
SHARED_FOLDER_SECONDS = 45.0
"""How long a network file system may take to show a file that another node wrote."""
_PACKAGE = Path(__file__).parents[2]
_USE_PRINTED_LINES = "Start each node with its own line of what `medsft sft ... --print_commands` prints."


def start_node(config: RunConfig, make_plan: Callable[[], RunPlan], *, on_status: StatusCallback = lambda line: None) -> RunDir:
    """Start this node's part of a run, and return when it has started. With one node: plan and start.

    Waits until all nodes have connected. `make_plan` is called on node 0 only; what it raises is raised on every node.
    `on_status` gets a line for each thing that is waited for. Raises `MismatchError` on every node when their flags or their
    software differ, `LaunchError` when a node does not connect.
    """
    if config.nodes == 1:
        return start(make_plan())
    problems = check(config)
    if config.port == 65535:
        problems.append(Problem("--port", "65535 is too high", "The nodes use this port and the next one."))
    if problems:
        raise ConfigError(problems)
    return _join_node_0(config, on_status) if config.rank else _start_all(config, make_plan, on_status)


def _start_all(config: RunConfig, make_plan: Callable[[], RunPlan], on_status: StatusCallback) -> RunDir:
    """Do node 0's part: wait for the others, plan, and have every node start its supervisor."""
    with ExitStack() as starting:
        with _all_nodes(config, on_status) as (nodes, inbox):
            plan = make_plan()
            _check_connected(nodes, inbox)
            starting.enter_context(sole_start(plan))
            with writing_to(Path(plan.run_dir), ExitCode.LAUNCH):  # here, so that the other nodes are told why, too
                run = write_start(plan)
            for connection in nodes.values():
                connection.send("start", run_dir=str(run.path), start=read_launch(run).start, identity=plan.identity)
        spawn_supervisor(run)
    return run


def _check_connected(nodes: Mapping[int, Connection], inbox: Inbox) -> None:
    """Refuse nodes that connected after all were there. Raises `LaunchError` when one of them has disconnected since."""
    while (message := receive(inbox, 0)) is not None:
        if message.kind == "join":
            refusal = Failure(f"All {len(nodes) + 1} nodes have connected already.", _USE_PRINTED_LINES, ExitCode.LAUNCH)
            message.connection.send("end", **refusal.to_json())
        rank = next((rank for rank, connection in nodes.items() if connection is message.connection), None)
        if message.kind == "lost" and rank is not None:
            raise error_from(message, rank)


@contextmanager
def _all_nodes(config: RunConfig, on_status: StatusCallback) -> Iterator[tuple[Mapping[int, Connection], Inbox]]:
    """Wait until all nodes have connected. What is raised then, inside the `with` too, is sent to all of them."""
    inbox: Inbox = SimpleQueue()
    server = Server(config.port + 1, inbox)
    try:
        yield _wait_for_nodes(config, inbox, on_status), inbox
    except MedsftError as error:
        server.send("end", **error.failure.to_json())
        raise
    except BaseException:
        interrupted = Failure("Node 0 was interrupted before the run started.", exit_code=ExitCode.LAUNCH)
        server.send("end", **interrupted.to_json())
        raise
    finally:
        server.close()


def _wait_for_nodes(config: RunConfig, inbox: Inbox, on_status: StatusCallback) -> Mapping[int, Connection]:
    mine = _node_facts(config)
    nodes: dict[int, Connection] = {}
    objections: list[str] = []
    seconds = join_seconds()
    deadline = time.monotonic() + seconds
    missing = list(range(1, config.nodes))
    on_status(f"Waiting for {name_nodes(missing).lower()}.")
    while missing and (left := deadline - time.monotonic()) > 0:
        message = receive(inbox, min(left, 1.0))
        if message is None:
            continue
        if message.kind == "join" and _are_node_facts(message.data):
            rank = message.data["rank"]
            found = _differences(mine, message.data)
            if rank in nodes:
                found.append(f"--rank {rank} is on {message.data['host']} and on another node")
            objections += found
            deadline = min(deadline, time.monotonic() + _GRACE_SECONDS) if found else deadline
            nodes[rank] = message.connection
            on_status(f"Node {rank} has connected ({message.data['host']}).")
        elif message.kind == "lost":
            nodes = {rank: connection for rank, connection in nodes.items() if connection is not message.connection}
        missing = [rank for rank in range(1, config.nodes) if rank not in nodes]
    if objections:
        listed = "\n".join(f"    {line}" for line in objections)
        raise MismatchError(f"The nodes differ in flags, software or GPUs:\n{listed}", hint=_USE_PRINTED_LINES)
    if missing:
        raise LaunchError(f"{name_nodes(missing)} did not connect within {seconds:.0f} seconds.", hint=_USE_PRINTED_LINES)
    return nodes


def name_nodes(ranks: list[int]) -> str:
    """Return `Node 1` or `Nodes 1, 2`."""
    return f"Node{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _join_node_0(config: RunConfig, on_status: StatusCallback) -> RunDir:
    """Do another node's part: connect to node 0, wait for the start, and start this node's supervisor."""
    assert config.addr is not None
    inbox: Inbox = SimpleQueue()
    seconds = join_seconds()
    on_status(f"Waiting for node 0 at {config.addr}, port {config.port + 1}.")
    connection = connect(config.addr, config.port + 1, inbox, seconds=seconds)
    if connection is None:
        raise LaunchError(
            f"Node 0 did not answer at {config.addr}, port {config.port + 1}, within {seconds:.0f} seconds.",
            hint=_USE_PRINTED_LINES,
        )
    try:
        connection.send("join", **_node_facts(config))
        on_status("Connected to node 0, which tokenizes and plans when all nodes have connected.")
        message = None
        while message is None:
            message = receive(inbox, 1.0)  # with a limit, so that Ctrl-C gets through
        if message.kind != "start":
            raise error_from(message)
    finally:
        connection.close()
    run = RunDir(Path(message.data["run_dir"]))
    _wait_for_start(run, message.data["start"], message.data["identity"])
    with writing_to(run.path, ExitCode.LAUNCH):
        spawn_supervisor(run, node=config.rank)
    return run


def _wait_for_start(run: RunDir, start_id: str, identity: str) -> None:
    """Wait until the start that node 0 wrote is visible here. Raises `LaunchError`, or `MismatchError` for another plan."""
    deadline = time.monotonic() + SHARED_FOLDER_SECONDS
    while _visible_start(run) != start_id:
        if time.monotonic() > deadline:
            raise LaunchError(
                f"{run.path}, which node 0 wrote, is not visible on {socket.gethostname()}.",
                hint="All nodes need --save_checkpoint_dir under the same path, in a folder that they share.",
            )
        time.sleep(0.2)
    if RunPlan.read(run.plan_path).identity != identity:
        raise MismatchError(f"{run.plan_path} is not the plan that node 0 made.")


def _visible_start(run: RunDir) -> str:
    try:
        return read_launch(run).start
    except LaunchError:
        return ""


def join_seconds() -> float:
    """Return how long to wait for nodes to be started. Raises `ConfigError` when the variable is no such time."""
    text = os.environ.get(JOIN_VARIABLE, "600")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= _LONGEST_JOIN_SECONDS:  # so that nan and infinity are refused, too
        hint = f"From 0 to {_LONGEST_JOIN_SECONDS:.0f}."
        raise ConfigError([Problem(JOIN_VARIABLE, f"must be a number of seconds, not {text!r}", hint)])
    return seconds


def _node_facts(config: RunConfig) -> dict[str, Any]:
    """Return what a node sends of itself, to be compared with node 0."""
    flags = {flag(name): value for name, value in to_mapping(config).items() if name != "rank"}
    gpus = len(visible_gpus())
    return {"rank": config.rank, "host": socket.gethostname(), "flags": flags, "software": _software(), "gpus": gpus}


def _are_node_facts(data: Mapping[str, Any]) -> bool:
    """Tell whether a message has the fields of `_node_facts`: anything may connect to a port."""
    kinds = {"rank": int, "host": str, "flags": dict, "software": dict}
    return all(isinstance(data.get(name), kind) for name, kind in kinds.items())


def _differences(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Return one line for each thing that must be the same on two nodes and is not."""
    lines = []
    for part in ("flags", "software"):
        ours, others = mine[part], theirs[part]
        lines += [
            f"{name}: {ours.get(name, 'not given')} on node 0, {others.get(name, 'not given')} on node {theirs['rank']}"
            for name in sorted({*ours, *others})
            if ours.get(name) != others.get(name)
        ]
    needed = mine["flags"].get("--nproc_per_node") or mine["gpus"]
    there = theirs.get("gpus")
    if mine["gpus"] and isinstance(there, int) and there < needed:
        lines.append(f"GPUs: {there} on node {theirs['rank']}, and each node needs {needed} (--nproc_per_node)")
    return lines


def _software() -> dict[str, str]:
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = "missing"
    return {"source code of medsft": source_hash(_PACKAGE), "torch": torch}


@cache
def source_hash(package: Path) -> str:
    """Return a hash over the names and contents of all Python files of a package."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def network_environment(addr: str) -> dict[str, str]:
    """Return what keeps gloo and NCCL on the interface that reaches node 0.

    Left alone, gloo takes the address that the host's own name has, which is often that of the loopback.
    """
    name = _interface(local_address(addr))
    if name is None:
        return {}
    return {"GLOO_SOCKET_IFNAME": name, "TP_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": f"={name}"}


def local_address(addr: str) -> str:
    """Return this host's address on the route to `addr`. Nothing is sent. Raises `LaunchError` when there is no route."""
    try:
        family, kind, _, _, target = socket.getaddrinfo(addr, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(target)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise LaunchError(f"{socket.gethostname()} cannot reach --addr {addr}: {error.strerror}.") from None


def _interface(address: str) -> str | None:
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == address for entry in addresses):
            return name
    return None
