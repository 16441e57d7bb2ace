"""How the nodes of a run find each other, agree that they mean the same run, and notice that one is gone.

    node 0:    call the roll -> tokenise, plan -> write the start -> "start" ----> supervisor: hub  <--+-- wires, to the end
    others:    join --------> wait ----------------------------------> read it --> supervisor: wire ---+

Nodes talk on the port after --port (torchrun has --port itself). The plan goes over the shared folder; what goes over the wire
is which start of which run to read there, so that a plan or a launch of an earlier start is never mistaken for this one.
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

from medsft.core.cluster.connection import Hub, News, Tell, Wire, connect, error_of, next_news
from medsft.core.config import RunConfig, to_mapping
from medsft.core.config_check import check
from medsft.core.disk import writing_to
from medsft.core.options import flag
from medsft.core.planning.plan import RunPlan
from medsft.core.run.launch import read_launch, sole_start, spawn_supervisor, start, write_start
from medsft.core.run.rundir import RunDir
from medsft.errors import ConfigError, ExitCode, LaunchError, MedsftError, MismatchError, Problem

JOIN_VARIABLE = "MEDSFT_JOIN_SECONDS"
"""Environment variable: how long a node waits for the others to be started, 600 seconds when it is not set."""
_LONGEST_JOIN_SECONDS = 30 * 86400.0
_GRACE_SECONDS = 5.0
"""How long node 0 still listens when nodes differ, so that those that are just being started get the reason too."""
SHARED_SECONDS = 45.0
"""How long a network file system may take to show a file that another node wrote."""
_PACKAGE = Path(__file__).parents[2]
_THE_SAME_LINE = "Start every node with its line of `medsft sft ... --print_commands`."


def start_together(config: RunConfig, make_plan: Callable[[], RunPlan], *, tell: Tell = lambda line: None) -> RunDir:
    """Start this node's part of a run, and return when it has started. With one node: plan and start.

    Waits until all nodes have come. `make_plan` is called on node 0 only; what it raises is raised on every node.
    Raises `MismatchError` on every node when their flags or their software differ, `LaunchError` when a node does not come.
    """
    if config.nodes == 1:
        return start(make_plan())
    problems = check(config)
    if config.port == 65535:
        problems.append(Problem("--port", "65535 is the last one", "The one after it is used too."))
    if problems:
        raise ConfigError(problems)
    return _join(config, tell) if config.rank else _lead(config, make_plan, tell)


def _lead(config: RunConfig, make_plan: Callable[[], RunPlan], tell: Tell) -> RunDir:
    with ExitStack() as starting:
        with _roll(config, tell) as (present, inbox):
            plan = make_plan()
            _check_again(present, inbox)
            starting.enter_context(sole_start(plan))
            with writing_to(Path(plan.run_dir), ExitCode.LAUNCH):  # here, so that the other nodes are told why, too
                run = write_start(plan)
            for wire in present.values():
                wire.send("start", run_dir=str(run.path), start=read_launch(run).start, identity=plan.identity)
        spawn_supervisor(run)
    return run


def _check_again(present: Mapping[int, Wire], inbox: SimpleQueue[News]) -> None:
    """Turn away who came after the roll was complete. Raises `LaunchError` when somebody has left since."""
    while (news := next_news(inbox, 0)) is not None:
        if news.kind == "join":
            reason = f"All {len(present) + 1} nodes are here already."
            news.wire.send("end", reason=reason, remedy=_THE_SAME_LINE, exit_code=int(ExitCode.LAUNCH))
        rank = next((rank for rank, wire in present.items() if wire is news.wire), None)
        if news.kind == "lost" and rank is not None:
            raise LaunchError(f"Node {rank} is lost: {news.data['reason']}.")


@contextmanager
def _roll(config: RunConfig, tell: Tell) -> Iterator[tuple[Mapping[int, Wire], SimpleQueue[News]]]:
    """Wait until all nodes have come. What goes wrong then, inside the `with` too, is told to all of them."""
    inbox: SimpleQueue[News] = SimpleQueue()
    hub = Hub(config.port + 1, inbox)
    try:
        yield _call(config, inbox, tell), inbox
    except MedsftError as error:
        hub.send("end", reason=error.message, remedy=error.hint, exit_code=int(error.exit_code))
        raise
    except BaseException:
        hub.send("end", reason="Node 0 was interrupted before the run started.", remedy="", exit_code=int(ExitCode.LAUNCH))
        raise
    finally:
        hub.close()


def _call(config: RunConfig, inbox: SimpleQueue[News], tell: Tell) -> Mapping[int, Wire]:
    mine = _card(config)
    present: dict[int, Wire] = {}
    objections: list[str] = []
    seconds = join_seconds()
    deadline = time.monotonic() + seconds
    missing = list(range(1, config.nodes))
    tell(f"Waiting for {name_nodes(missing)}.")
    while missing and (left := deadline - time.monotonic()) > 0:
        news = next_news(inbox, min(left, 1.0))
        if news is None:
            continue
        if news.kind == "join":
            rank = int(news.data["rank"])
            found = _differences(mine, news.data)
            if rank in present:
                found.append(f"--rank {rank} is on {news.data['host']} and on another node")
            objections += found
            deadline = min(deadline, time.monotonic() + _GRACE_SECONDS) if found else deadline
            present[rank] = news.wire
            tell(f"Node {rank} is here ({news.data['host']}).")
        elif news.kind == "lost":
            present = {rank: wire for rank, wire in present.items() if wire is not news.wire}
        missing = [rank for rank in range(1, config.nodes) if rank not in present]
    if objections:
        listed = "\n".join(f"    {line}" for line in objections)
        raise MismatchError(f"The nodes were not started alike:\n{listed}", hint=_THE_SAME_LINE)
    if missing:
        raise LaunchError(f"No sign of {name_nodes(missing)} within {seconds:.0f} seconds.", hint=_THE_SAME_LINE)
    return present


def name_nodes(ranks: list[int]) -> str:
    """Return `node 1` or `nodes 1, 2`."""
    return f"node{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _join(config: RunConfig, tell: Tell) -> RunDir:
    assert config.addr is not None
    inbox: SimpleQueue[News] = SimpleQueue()
    seconds = join_seconds()
    tell(f"Waiting for node 0 at {config.addr}, port {config.port + 1}.")
    wire = connect(config.addr, config.port + 1, inbox, seconds=seconds)
    if wire is None:
        raise LaunchError(
            f"Node 0 did not answer at {config.addr}, port {config.port + 1}, within {seconds:.0f} seconds.",
            hint=_THE_SAME_LINE,
        )
    try:
        wire.send("join", **_card(config))
        tell("Node 0 is here. It tokenises and plans when all nodes have come.")
        news = None
        while news is None:
            news = next_news(inbox, 1.0)  # with a limit, so that Ctrl-C gets through
        if news.kind != "start":
            raise error_of(news)
    finally:
        wire.close()
    run = RunDir(Path(news.data["run_dir"]))
    _await_start(run, news.data["start"], news.data["identity"])
    with writing_to(run.path, ExitCode.LAUNCH):
        spawn_supervisor(run, node=config.rank)
    return run


def _await_start(run: RunDir, start_id: str, identity: str) -> None:
    deadline = time.monotonic() + SHARED_SECONDS
    while _start_here(run) != start_id:
        if time.monotonic() > deadline:
            raise LaunchError(
                f"{run.path}, as node 0 wrote it, does not appear on {socket.gethostname()}.",
                hint="All nodes need --save_checkpoint_dir under the same path, in a folder that they share.",
            )
        time.sleep(0.2)
    if RunPlan.read(run.plan_path).identity != identity:
        raise MismatchError(f"{run.plan_path} is not the plan that node 0 made.")


def _start_here(run: RunDir) -> str:
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


def _card(config: RunConfig) -> dict[str, Any]:
    """Return what a node shows of itself."""
    flags = {flag(name): value for name, value in to_mapping(config).items() if name != "rank"}
    return {"rank": config.rank, "host": socket.gethostname(), "flags": flags, "software": _software()}


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
    """Return this host's address on the way to `addr`. Nothing is sent. Raises `LaunchError` when there is no way."""
    try:
        family, kind, _, _, target = socket.getaddrinfo(addr, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(target)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise LaunchError(f"There is no way from {socket.gethostname()} to --addr {addr}: {error.strerror}.") from None


def _interface(address: str) -> str | None:
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == address for entry in addresses):
            return name
    return None
