"""Two nodes with addresses of their own, in two network namespaces of this machine, on a folder that they share."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
import tiny
from live import wait_for

from medsft.core.config.file import save_toml
from medsft.core.run.events import EventReader
from medsft.core.run.rundir import RunDir, find_runs
from medsft.errors import ExitCode

pytestmark = [pytest.mark.distributed, pytest.mark.netns, pytest.mark.timeout(280)]

ADDRESSES = ("10.213.7.1", "10.213.7.2")
CHANGES = {"iters": 80, "save_interval": 10, "eval_interval": 40, "lr": 1e-3, "min_lr": 1e-4}


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise OSError(done.stderr.strip())


@dataclass
class Network:
    """Two namespaces that one cable connects."""

    names: tuple[str, str]

    def lay(self) -> None:
        for name in self.names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        one, two = self.names
        ip("-n", one, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", two)
        for name, address in zip(self.names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")

    def cut(self) -> None:
        ip("-n", self.names[1], "link", "set", "cable", "down")

    def remove(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@pytest.fixture
def network() -> Iterator[Network]:
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need Linux, root and the `ip` of iproute2")
    laid = Network((f"medsft-{uuid4().hex[:8]}-0", f"medsft-{uuid4().hex[:8]}-1"))
    try:
        try:
            laid.lay()
        except OSError as error:
            pytest.skip(f"network namespaces are not allowed here: {error}")
        yield laid
    finally:
        laid.remove()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, data, medsft.toml and run.toml."""
    folder = tmp_path_factory.mktemp("nodes")
    config, _ = tiny.project(folder)
    save_toml(tiny.from_mapping(CHANGES, base=config), folder / "run.toml")
    return folder


@dataclass
class Node:
    """The command on one node."""

    process: subprocess.Popen[str]

    def wait(self) -> tuple[int, str]:
        """The exit code, and what it wrote on standard error."""
        _, text = self.process.communicate(timeout=150)
        return self.process.returncode, text


@dataclass
class Cluster:
    """Starts `medsft` on the nodes, and leaves none of its processes behind."""

    network: Network
    folder: Path
    started: list[Node] = field(default_factory=list)

    def start(self, rank: int, name: str, *flags: str, command: tuple[str, ...] = ("sft",), **env: str) -> Node:
        if command == ("sft",):
            command = ("sft", "--config", "run.toml", "--settings", "medsft.toml", "--id", name)
        nodes = ("--nodes", "2", "--rank", str(rank), "--addr", ADDRESSES[0])
        line = ["ip", "netns", "exec", self.network.names[rank], sys.executable, "-m", "medsft", *command, *nodes, *flags]
        process = subprocess.Popen(
            [*line, "--plain"],
            cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", **env},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(Node(process))
        return self.started[-1]

    def run(self, name: str) -> RunDir | None:
        return next((run for run in find_runs(self.folder / "runs") if run.path.name.endswith(f"-{name}")), None)

    def steps(self, name: str) -> int:
        run = self.run(name)
        return run.view().iteration if run else 0

    def is_beyond(self, name: str, step: int) -> bool:
        return self.steps(name) > step

    def kill(self, rank: int) -> None:
        """End everything in a node's namespace at once."""
        for pid in self.pids(rank):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def pids(self, rank: int) -> list[int]:
        listed = subprocess.run(["ip", "netns", "pids", self.network.names[rank]], capture_output=True, text=True)
        return [int(pid) for pid in listed.stdout.split()]

    def workers(self, rank: int) -> list[psutil.Process]:
        processes = [psutil.Process(pid) for pid in self.pids(rank)]
        return [
            p for p in processes if "medsft.core.engine.commands.worker" in (line := p.cmdline()) and "--nnodes=2" not in line
        ]


@pytest.fixture
def cluster(network: Network, made: Path) -> Iterator[Cluster]:
    made_here = Cluster(network, made)
    yield made_here
    for rank in (0, 1):
        made_here.kill(rank)
    for node in made_here.started:
        node.process.communicate()


def losses(run: RunDir) -> list[float]:
    return list(run.view().series["loss"])


@pytest.fixture(scope="module")
def undisturbed(made: Path) -> list[float]:
    """The losses of one process."""
    from medsft.core.config.file import load_toml
    from medsft.core.settings import load_settings

    plan = tiny.plan_of(load_toml(made / "run.toml"), load_settings(made / "medsft.toml"), id="alone")
    return [loss for (loss,) in tiny.series(tiny.train(plan), "step", "loss")]


def test_the_other_node_first(cluster: Cluster, undisturbed: list[float]) -> None:
    early = cluster.start(1, "early")
    assert "Waiting for node 0 at 10.213.7.1" in early.process.stderr.readline()
    nodes = [cluster.start(0, "early"), early]
    assert [node.wait()[0] for node in nodes] == [0, 0]
    run = cluster.run("early")
    assert run.state(run.view()) == "finished"
    assert losses(run) == pytest.approx(undisturbed, abs=1e-4)
    assert Path(run.view().export, "model.safetensors").exists()


def test_a_node_dies_and_comes_back_late(cluster: Cluster, undisturbed: list[float]) -> None:
    nodes = [cluster.start(rank, "dies") for rank in (0, 1)]
    wait_for(lambda: cluster.steps("dies") > 12)
    cluster.kill(1)
    code, text = nodes[0].wait()
    assert code == ExitCode.LAUNCH
    assert "Node 1 is lost: its connection was closed" in text
    wait_for(lambda: cluster.pids(0) == [])
    run = cluster.run("dies")
    view = run.view()
    assert (run.state(view), view.exit_code, view.reason) == ("failed", 5, "Node 1 is lost: its connection was closed.")

    resume = ("resume", str(run.path))
    again = cluster.start(0, "dies", command=resume)
    assert any("Waiting for node 1" in line for line in again.process.stderr), "it did not wait"
    late = cluster.start(1, "dies", command=resume)
    assert [node.wait()[0] for node in (again, late)] == [0, 0]
    assert starts(run)[1] >= 10
    assert losses(run) == pytest.approx(undisturbed, abs=1e-4)


def test_ranks_of_both_nodes_are_restarted(cluster: Cluster, undisturbed: list[float]) -> None:
    nodes = [cluster.start(rank, "restarted", "--max_restarts", "2") for rank in (0, 1)]
    for killed, beyond in ((1, 12), (0, 32)):
        wait_for(partial(cluster.is_beyond, "restarted", beyond))
        cluster.workers(killed)[0].send_signal(signal.SIGKILL)
    assert [node.wait()[0] for node in nodes] == [0, 0]
    run = cluster.run("restarted")
    assert run.state(run.view()) == "finished"
    assert starts(run) == sorted(starts(run))
    assert len(starts(run)) == 3
    assert starts(run)[1] >= 10
    assert losses(run) == pytest.approx(undisturbed, abs=1e-4)


def test_the_link_is_cut(cluster: Cluster) -> None:
    nodes = [cluster.start(rank, "cut") for rank in (0, 1)]
    wait_for(lambda: cluster.steps("cut") > 5)
    cluster.network.cut()
    (code, text), (other_code, other_text) = (node.wait() for node in nodes)
    assert (code, other_code) == (5, 5)
    assert "Node 1 is lost: it sent nothing for 30 seconds" in text
    assert "Node 0 is lost: it sent nothing for 30 seconds" in other_text
    assert cluster.pids(0) == cluster.pids(1) == []
    assert cluster.run("cut").view().exit_code == 5


def test_the_first_node_dies(cluster: Cluster) -> None:
    nodes = [cluster.start(rank, "first") for rank in (0, 1)]
    wait_for(lambda: cluster.steps("first") > 12)
    run = cluster.run("first")
    cluster.kill(0)
    code, text = nodes[1].wait()
    assert code == ExitCode.LAUNCH
    assert "Node 0 is lost: its connection was closed" in text
    assert cluster.pids(1) == []
    assert run.state(run.view()) == "lost"


def starts(run: RunDir) -> list[int]:
    """The iterations after which the ranks were started."""
    return [event.data["iteration"] for event in EventReader(run.events_path).read() if event.kind == "run_started"]


def test_nodes_that_differ_end_at_once(cluster: Cluster) -> None:
    nodes = [cluster.start(0, "differ"), cluster.start(1, "differ", "--lr", "0.5")]
    for code, text in (node.wait() for node in nodes):
        assert code == ExitCode.MISMATCH
        assert "--lr: 0.001 on node 0, 0.5 on node 1" in text
    assert cluster.run("differ") is None


@pytest.mark.parametrize("rank", [0, 1])
def test_the_other_node_never_comes(cluster: Cluster, rank: int) -> None:
    code, text = cluster.start(rank, "never", MEDSFT_JOIN_SECONDS="1").wait()
    assert code == ExitCode.LAUNCH
    assert ("Node 1 did not connect within 1 seconds" if rank == 0 else "Node 0 did not answer at 10.213.7.1") in text
    assert cluster.run("never") is None


def test_what_ends_node_0_ends_the_others(cluster: Cluster) -> None:
    nodes = [cluster.start(rank, "missing", "--data", "missing.jsonl") for rank in (0, 1)]
    for code, text in (node.wait() for node in nodes):
        assert code == ExitCode.DATA
        assert "missing.jsonl" in text


def test_slurm_signals_every_process(cluster: Cluster) -> None:
    nodes = [cluster.start(rank, "slurm") for rank in (0, 1)]
    wait_for(lambda: cluster.steps("slurm") > 2)
    for pid in [*cluster.pids(0), *cluster.pids(1)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    for code, text in (node.wait() for node in nodes):
        assert code == ExitCode.DONE, text
    run = cluster.run("slurm")
    view = run.view()
    assert run.state(view) == "stopped"
    assert run.latest_checkpoint() == view.iteration < CHANGES["iters"]
