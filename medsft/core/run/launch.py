"""Starts runs as processes of their own, which go on when the terminal, SSH connection or UI that started them is closed.

start(plan) --> run folder --> supervisor (new session) --> launcher --> one worker per rank
                                    '--> after the last iteration: the export

The launcher is torchrun, or `cluster.one_rank` for a run with one rank. With several nodes, each has a supervisor;
`cluster.rendezvous.start_node` starts them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from medsft.core.config.run_config import OF_A_START
from medsft.core.disk import trouble, writing_to
from medsft.core.files import write_atomically
from medsft.core.planning.layout import Layout
from medsft.core.planning.places import moved_to, places_of, with_listed_base, with_places
from medsft.core.planning.plan import RunPlan
from medsft.core.run.events import EventReader
from medsft.core.run.processes import PARENT_VARIABLE
from medsft.core.run.rundir import RunDir
from medsft.errors import DiskError, ExitCode, Failure, LaunchError, MedsftError, ReportedError

STOP_SECONDS = 600
"""How long ranks may take to save after a SIGTERM before they are killed."""
TORCHRUN = "medsft.core.engine.commands.torchrun"
"""The module that starts the ranks of a node."""
ONE_RANK = "medsft.core.cluster.one_rank"
"""The module that starts the rank of a run that has only one."""
WORKER = "medsft.core.engine.commands.worker"
"""The module of a rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What may change each time a run is started: its layout, some options, and how it finds the other nodes."""

    layout: Layout
    nproc_per_node: int
    micro_batch: int
    num_micro_batches: int
    recompute: str = ""
    """As `RunPlan.recompute`; nothing where an earlier version started it, whose plan says it."""
    reshard: bool = False
    device_kind: str = ""
    """Of the device that this start was planned for, `cuda` or `cpu`; nothing where an earlier version started it."""
    nodes: int = 1
    addr: str | None = None
    port: int = 6020
    max_restarts: int = 0
    start: str = ""
    """Tells this start from every other."""
    places: Mapping[str, str] = field(default_factory=dict)
    """Where base model, tokenizer, sets and finished model are at this start, see `planning.places`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Values of the fields `OF_A_START` at this start; nothing where an earlier version started it."""
    after: int = -1
    """Number of the last event before this start, -1 for none. What a command shows of this start begins after that event."""

    def apply(self, plan: RunPlan) -> RunPlan:
        """Return the plan at this layout, with the options and the places of this start."""
        plan = self.with_options(with_places(plan, self.places))
        return replace(
            plan,
            layout=self.layout,
            nproc_per_node=self.nproc_per_node,
            micro_batch=self.micro_batch,
            num_micro_batches=self.num_micro_batches,
            recompute=self.recompute or plan.config.recompute,
            reshard=self.reshard,
            estimates=replace(plan.estimates, device_kind=self.device_kind or plan.estimates.device_kind),
        )

    def with_options(self, plan: RunPlan) -> RunPlan:
        """Return the plan with the options of this start."""
        known = {name: value for name, value in self.options.items() if name in OF_A_START}
        return replace(plan, config=replace(plan.config, **known))

    @classmethod
    def of(cls, plan: RunPlan) -> Launch:
        """Return what a plan says of its launch."""
        return cls(
            layout=plan.layout,
            nproc_per_node=plan.nproc_per_node,
            micro_batch=plan.micro_batch,
            num_micro_batches=plan.num_micro_batches,
            recompute=plan.recompute,
            reshard=plan.reshard,
            device_kind=plan.estimates.device_kind,
            nodes=plan.config.nodes,
            addr=plan.config.addr,
            port=plan.config.port,
            max_restarts=plan.config.max_restarts,
            places=places_of(plan),
            options={name: getattr(plan.config, name) for name in sorted(OF_A_START)},
        )


def read_launch(run: RunDir) -> Launch:
    """Return how the run was started last. Raises `LaunchError` when it never was."""
    path = run.launch_path
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return Launch(**{**raw, "layout": Layout(**raw["layout"])})
    except (OSError, ValueError, TypeError, KeyError):
        raise LaunchError(f"{path}: missing or damaged.", hint=f"Start it with: medsft resume {run.path}") from None


def load_plan(run: RunDir) -> RunPlan:
    """Return the plan of a run with the options of its latest start, its paths where they are now.

    What is not where it was planned is taken from where the latest start has found it, if it is there; a base model that is
    neither here nor there from where medsft.toml has it now. Raises `MismatchError` when the plan cannot be read.
    """
    plan = moved_to(with_latest_options(run, RunPlan.read(run.plan_path)), run.path)
    latest = _latest_launch(run)
    then = latest.places if latest else {}
    gone = [name for name, path in places_of(plan).items() if path and name != "export" and not Path(path).exists()]
    plan = with_places(plan, {name: then[name] for name in gone if name in then and Path(then[name]).exists()})
    return with_listed_base(plan, run.path)


def with_latest_options(run: RunDir, plan: RunPlan) -> RunPlan:
    """Return the plan of a run with the options of its latest start; as it is where the run was never started."""
    latest = _latest_launch(run)
    return latest.with_options(plan) if latest else plan


def _latest_launch(run: RunDir) -> Launch | None:
    try:
        return read_launch(run)
    except LaunchError:
        return None


def load_launched_plan(run: RunDir) -> RunPlan:
    """Return the plan of a run at the layout and with the places of its latest start.

    Raises as `load_plan` and `read_launch`.
    """
    return read_launch(run).apply(load_plan(run))


def start(plan: RunPlan) -> RunDir:
    """Start the run of a plan, or go on with it where it stands, and return at once.

    A run that exists must have the same identity: that is the caller's to check (`workflow.prepare` does). Raises
    `LaunchError` when it is running already, or needs several nodes.
    """
    if plan.config.nodes > 1:
        raise LaunchError(
            f"This run needs {plan.config.nodes} nodes.",
            hint="Type on each of them what `medsft sft ... --print_commands` prints.",
        )
    with sole_start(plan):
        run = write_start(plan)
        spawn_supervisor(run)
    return run


@contextmanager
def sole_start(plan: RunPlan) -> Iterator[None]:
    """Let one process at a time start the run of a plan: the second finds it running. Raises `LaunchError`."""
    from filelock import FileLock

    run = RunDir(Path(plan.run_dir))
    lock: FileLock | None = None
    try:
        run.control.mkdir(parents=True, exist_ok=True)
        lock = FileLock(run.start_lock_path)
        lock.acquire()
    except NotImplementedError:  # a file system without locks
        lock = None
    except OSError as error:
        run.remove_unstarted()
        if (found := trouble(error, run.path)) is not None:
            raise DiskError(found.message, hint=found.hint, exit_code=ExitCode.LAUNCH) from None
        raise LaunchError(f"{run.path}: cannot be written: {error.strerror or error}.") from None
    try:
        with writing_to(run.path, ExitCode.LAUNCH):
            yield
    except DiskError:
        run.remove_unstarted()
        raise
    finally:
        if lock is not None:
            lock.release()


def write_start(plan: RunPlan) -> RunDir:
    """Write down that and how the run is to be started now, without starting anything. Raises `LaunchError` while it runs."""
    run = RunDir(Path(plan.run_dir))
    if run.alive():
        raise LaunchError(f"{run.path} is running ({run.who()}).", hint=f"Watch it: medsft watch {run.path}")
    run.make_folders()
    if not run.exists():
        run.create(plan.to_json())
        run.write_status(f"Training for {plan.num_iterations} iterations", fresh=True)
    elif not _has_plan(run):
        write_atomically(run.plan_path, plan.to_json())  # it was damaged; `workflow.existing_plan` has seen that this one may
    run.clear_start()
    events = EventReader(run.events_path).read()
    launch = replace(Launch.of(plan), start=uuid.uuid4().hex, after=events[-1].seq if events else -1)
    write_atomically(run.launch_path, json.dumps(asdict(launch), indent=1) + "\n")
    return run


def _has_plan(run: RunDir) -> bool:
    try:
        RunPlan.read(run.plan_path)
    except MedsftError:
        return False
    return True


def spawn_supervisor(run: RunDir, node: int = 0) -> None:
    """Start the process that works on the run on this node."""
    command = [sys.executable, "-m", "medsft.core.cluster.supervisor", str(run.path), str(node)]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # one that comes early waits until it can be a stop
    try:
        process = _spawn_detached(command, run.supervisor_log(node))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        if not run.is_claimed_by(process.pid, node=node):  # or else it was faster, and may have ended already
            run.claim(process.pid, node=node)
    except OSError:  # a process that nobody knows of must not train
        process.kill()
        process.wait()
        raise


def start_export(run: RunDir, to: Path, iteration: int) -> None:
    """Export a checkpoint in a process of its own, and return at once; how it goes is in `RunDir.export_log`."""
    command = [
        sys.executable,
        "-m",
        "medsft.core.engine.commands.export",
        str(run.path),
        "--to",
        str(to),
        "--iteration",
        str(iteration),
    ]
    _spawn_detached(command, run.export_log)


def _spawn_detached(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """A new session, so that the hang-up of a terminal does not reach it."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, close_fds=True
        )


def run_engine(module: str, arguments: Sequence[str]) -> str:
    """Run `python -m medsft.core.engine.commands.MODULE` to its end and return its standard output; its errors pass through.

    Raises the `MedsftError` that the process reports by its exit code.
    """
    command = [sys.executable, "-m", f"medsft.core.engine.commands.{module}", *arguments]
    environment = {**engine_environment(1), PARENT_VARIABLE: str(os.getpid())}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode == 0:
        return done.stdout
    raise EngineError(last_message(done.stderr) or f"{module} ended with {done.returncode}", done.returncode)


class EngineError(ReportedError):
    """What an engine process has reported."""

    def __init__(self, message: str, returncode: int) -> None:
        # 1 says that a run is finished, and is what Python ends with where nobody has caught an error: never the first here.
        known = returncode in [int(code) for code in ExitCode if code != ExitCode.ALREADY_FINISHED]
        super().__init__(Failure(message, exit_code=ExitCode(returncode) if known else ExitCode.TRAINING))
        self.returncode = returncode
        """Of the process; negative for the signal that ended it."""


def last_message(text: str) -> str:
    """Return the last line and, where that is the indented hint of an error, the message above it too."""
    lines = text.rstrip().splitlines()
    first = next((i for i in range(len(lines) - 1, -1, -1) if not lines[i].startswith(" ")), 0)
    return "\n".join(lines[first:])


def engine_environment(processes: int) -> dict[str, str]:
    """Return the environment for training processes: the cores of a node divided among them, no hub, no telemetry."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "OMP_NUM_THREADS": str(max(1, cores // processes)),
        # What torchrun waits for its ranks after a SIGTERM. Its flag for it is not in torch 2.11.
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(STOP_SECONDS),
        # How often a waiting thread looks for the others before it sleeps. libgomp's own 300,000 looks spin a time slice away
        # where another process has the core of the thread that is waited for; measured in docs/performance.md.
        "GOMP_SPINCOUNT": "100000",
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
