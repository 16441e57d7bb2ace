"""One rank of a run: `torchrun -m medsft.core.engine.commands.worker RUN_DIR`. Opens the plan, builds its part, trains.

A rank that fails leaves `control/error_rank_N.json` behind; the supervisor turns the first of them into the `failed` event.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from contextlib import nullcontext, suppress
from pathlib import Path

import torch
import torch.distributed as dist
from filelock import FileLock, Timeout

from medsft.core.disk import trouble
from medsft.core.engine.commands.entry_point import end_rank
from medsft.core.engine.commands.out_of_memory import is_out_of_memory, out_of_memory
from medsft.core.engine.kernels import cpu
from medsft.core.engine.parallel.mesh import HOSTS_STORE, open_mesh
from medsft.core.planning.plan import RunPlan
from medsft.core.run.events import EventWriter
from medsft.core.run.integrity import hash_ahead
from medsft.core.run.launch import STOP_SECONDS, TORCHRUN, load_launched_plan
from medsft.core.run.processes import PARENT_VARIABLE, end_with_parent, started_by
from medsft.core.run.rundir import RankError, RunDir
from medsft.errors import ExitCode, Failure, LaunchError, MedsftError

_WAIT_FOR_WRITER_SECONDS = 600.0


def main(run_dir: str) -> int:
    """Train one rank and return the exit code of its process."""
    run = RunDir(Path(run_dir))
    _take_rank()
    try:
        run.error_path(_rank()).unlink(missing_ok=True)  # of this rank before torchrun restarted it
        _live_with_launcher(run)
        cpu.compile_ahead()
        _work(run)
    except BaseException as error:
        with suppress(OSError):  # a disk that is full or read-only: the supervisor asks it
            _leave_error(run, error)
        with suppress(OSError):  # the log's
            traceback.print_exc()
        return int(error.exit_code) if isinstance(error, MedsftError) else int(ExitCode.TRAINING)
    dist.destroy_process_group()
    with suppress(OSError):
        run.part_path(f"rank_{_rank()}").unlink(missing_ok=True)
    return int(ExitCode.DONE)


def _live_with_launcher(run: RunDir) -> None:
    """Show that this rank lives, and end it when its launcher is gone: it saves first when it trains already.

    Until `Trainer.train` takes it, SIGTERM ends the process: nothing was trained that could be saved.
    """
    launcher = os.environ.pop(PARENT_VARIABLE, None)
    parent = int(launcher) if launcher else os.getppid()
    if "TORCHELASTIC_RUN_ID" in os.environ and not started_by(TORCHRUN):
        raise LaunchError("The launcher of this rank is gone.")
    rank = _rank()
    run.claim_part(f"rank_{rank}", os.getpid(), node=int(os.environ.get("MEDSFT_NODE", "0")))

    def beat() -> None:
        if rank == 0:
            with suppress(OSError):
                run.beat()

    end_with_parent(parent, patience=STOP_SECONDS, meanwhile=beat)


def _take_rank() -> None:
    """Count ranks as --rank counts nodes: torchrun orders nodes by the spelling of their addresses.

    So rank 0, which writes the events, is on node 0, whose supervisor goes on writing them when rank 0 is dead. The store in
    which ranks meet stays where torchrun has told everybody that it is: with the rank that it calls 0.
    """
    os.environ[HOSTS_STORE] = str(int(_rank() == 0))
    node = os.environ.get("MEDSFT_NODE")
    if node is not None:
        os.environ["RANK"] = str(int(node) * int(os.environ["LOCAL_WORLD_SIZE"]) + int(os.environ["LOCAL_RANK"]))


def _work(run: RunDir) -> None:
    plan = load_launched_plan(run)
    if _rank() == 0:
        hash_ahead(run, plan.set_folders())
    from medsft.core.engine.train.build import build_trainer  # here: compiling and hashing go on while it is imported

    mesh = open_mesh(plan.layout, device_kind=plan.estimates.device_kind)
    torch.manual_seed(plan.config.seed)
    with _sole_writer(run) if mesh.reports else nullcontext():
        events = EventWriter(run.events_path) if mesh.reports else None
        trainer = build_trainer(plan, run, mesh, events)
        if not trainer.train() and events:
            events.write("stopped", iteration=trainer.state.iteration)


def _sole_writer(run: RunDir) -> FileLock:
    """Return a lock that makes this process the one writer of the run while it is held.

    Ranks whose supervisor was killed still save and end: a new start waits for them. Raises `LaunchError` when they do not end.
    """
    lock = FileLock(run.writer_lock_path)
    try:
        lock.acquire(timeout=_WAIT_FOR_WRITER_SECONDS)
    except Timeout:
        raise LaunchError(f"{run.path}: other processes still train it.", hint="End them first, then resume.") from None
    return lock


def _leave_error(run: RunDir, error: BaseException) -> None:
    """Write why this rank ends, in words for people, where the supervisor looks."""
    expected = isinstance(error, MedsftError) or trouble(error, run.path) is not None
    failure = describe(error, run.path)
    with suppress(OSError):  # the folder is gone, or the disk is full: the log has it
        run.write_rank_error(RankError(_rank(), time.time(), failure, expected))


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def describe(error: BaseException, folder: Path) -> Failure:
    """Return what happened, and what to do, for an exception of a rank of the run in `folder`."""
    if isinstance(error, MedsftError):
        return error.failure
    if (found := trouble(error, folder)) is not None:
        return Failure(found.message, f"Make room or mend the disk, and go on from the last checkpoint: medsft resume {folder}")
    text = str(error).splitlines()[0] if str(error) else ""
    if is_out_of_memory(error):
        return out_of_memory(_plan_of(RunDir(folder)))
    return Failure(f"{type(error).__name__}: {text}", f"The rank's log in {RunDir(folder).logs} has the traceback.")


def _plan_of(run: RunDir) -> RunPlan | None:
    with suppress(MedsftError, OSError):
        return load_launched_plan(run)
    return None


if __name__ == "__main__":
    end_rank(main(sys.argv[1]))
