"""Starts, resumes and stops runs: as processes of their own, which no terminal, SSH connection or UI takes along when it ends.

start(plan) --> run folder --> supervisor (new session) --> torchrun --> one worker per rank
                                    '--> after the last iteration: the export

With several nodes, each has a supervisor; `nodes.start_together` starts them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from medsft.core.planning.layout import Layout
from medsft.core.planning.plan import RunPlan
from medsft.core.run.events import EventReader
from medsft.core.run.rundir import RunDir, write_atomically
from medsft.errors import ExitCode, LaunchError, MedsftError


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What may change each time a run is started: its layout, and how it finds the other nodes."""

    layout: Layout
    nproc_per_node: int
    micro_batch: int
    num_micro_batches: int
    nodes: int = 1
    addr: str | None = None
    port: int = 6020
    max_restarts: int = 0
    start: str = ""
    """Tells this start from every other."""
    after: int = -1
    """Number of the last event before this start, -1 for none: whoever follows this start begins behind it."""

    def apply(self, plan: RunPlan) -> RunPlan:
        """Return the plan at this layout."""
        return plan.with_launch(
            self.layout,
            nproc_per_node=self.nproc_per_node,
            micro_batch=self.micro_batch,
            num_micro_batches=self.num_micro_batches,
        )

    @classmethod
    def of(cls, plan: RunPlan) -> Launch:
        """Return what a plan says of its launch."""
        return cls(
            layout=plan.layout,
            nproc_per_node=plan.nproc_per_node,
            micro_batch=plan.micro_batch,
            num_micro_batches=plan.num_micro_batches,
            nodes=plan.config.nodes,
            addr=plan.config.addr,
            port=plan.config.port,
            max_restarts=plan.config.max_restarts,
        )


def launch_path(run: RunDir) -> Path:
    """Return the file with the current launch."""
    return run.control / "launch.json"


def read_launch(run: RunDir) -> Launch:
    """Return how the run was started last. Raises `LaunchError` when it never was."""
    try:
        raw = json.loads(launch_path(run).read_text(encoding="utf-8"))
        return Launch(**{**raw, "layout": Layout(**raw["layout"])})
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        raise LaunchError(f"{launch_path(run)}: missing or damaged.", hint=f"Start it with: medsft resume {run.path}") from None


def start(plan: RunPlan) -> RunDir:
    """Start the run of a plan, or go on with it where it stands, and return at once.

    A run that exists must have the same identity: that is the caller's to check (`pipeline.prepare` does). Raises
    `LaunchError` when it is running already, or needs several nodes.
    """
    if plan.config.nodes > 1:
        raise LaunchError(
            f"This run needs {plan.config.nodes} nodes.",
            hint="Type on each of them what `medsft sft ... --print_commands` prints.",
        )
    run = write_start(plan)
    spawn_supervisor(run)
    return run


def write_start(plan: RunPlan) -> RunDir:
    """Write down that and how the run is to be started now, without starting anything. Raises `LaunchError` while it runs."""
    run = RunDir(Path(plan.run_dir))
    if run.alive():
        raise LaunchError(f"{run.path} is running.", hint=f"Follow it with: medsft watch {run.path}")
    if not run.exists():
        run.create(plan.to_json())
        run.write_status(f"Training for {plan.num_iterations} iterations", fresh=True)
    for request in ("stop", "save"):
        run.clear_request(request)
    for pattern in ("error_rank_*.json", "end_node_*.json"):
        for old in run.control.glob(pattern):
            old.unlink()
    events = EventReader(run.events_path).read()
    launch = replace(Launch.of(plan), start=uuid.uuid4().hex, after=events[-1].seq if events else -1)
    write_atomically(launch_path(run), json.dumps(asdict(launch), indent=1) + "\n")
    return run


def spawn_supervisor(run: RunDir, node: int = 0) -> None:
    """Start the process that works on the run on this node."""
    log = run.logs / f"supervisor{node_suffix(node)}.log"
    process = _spawn_detached([sys.executable, "-m", "medsft.core.run.supervise", str(run.path), str(node)], log)
    run.claim(process.pid, node=node)


def node_suffix(node: int) -> str:
    """Return what the names of a node's logs end with: nothing on node 0."""
    return f"-node{node}" if node else ""


def start_export(run: RunDir, to: Path) -> None:
    """Export the latest checkpoint in a process of its own, and return at once; how it goes is in `logs/export.log`."""
    command = [sys.executable, "-m", "medsft.core.engine.export", str(run.path), "--to", str(to)]
    _spawn_detached(command, run.logs / "export.log")


def _spawn_detached(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """A new session, so that the hang-up of a terminal does not reach it."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, close_fds=True
        )


def run_engine(module: str, arguments: Sequence[str]) -> str:
    """Run `python -m medsft.core.engine.MODULE` to its end and return its standard output; its errors pass through.

    Raises the `MedsftError` that the process reports by its exit code.
    """
    command = [sys.executable, "-m", f"medsft.core.engine.{module}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=engine_environment(1))
    if done.returncode == 0:
        return done.stdout
    error = MedsftError(_last_message(done.stderr) or f"{module} ended with {done.returncode}")
    known = done.returncode in [int(code) for code in ExitCode]
    error.exit_code = ExitCode(done.returncode) if known else ExitCode.TRAINING
    raise error


def _last_message(text: str) -> str:
    """Return the last line and, where that is the indented hint of an error, the message above it too."""
    lines = text.rstrip().splitlines()
    first = next((i for i in range(len(lines) - 1, -1, -1) if not lines[i].startswith(" ")), 0)
    return "\n".join(lines[first:])


def engine_environment(processes: int) -> dict[str, str]:
    """Return the environment for training processes: the cores of a node divided among them, no hub, no telemetry."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "OMP_NUM_THREADS": str(max(1, cores // processes)),
        # glibc gives large tensors back to the system and faults every page in again for the next: keep them instead.
        "MALLOC_MMAP_THRESHOLD_": str(8 << 30),
        "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
        # oneDNN and torch's layer above it keep code for each size of product, and here each micro-batch has another size: of
        # the 1,024 that they would keep, all but the last are of no use again. A micro-batch has some 20.
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
        "LRU_CACHE_CAPACITY": "64",
        # On a GPU such sizes leave gaps between segments of memory that cannot grow.
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **os.environ,
    }
