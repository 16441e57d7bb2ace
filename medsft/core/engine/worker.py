"""One rank of a run: `torchrun -m medsft.core.engine.worker RUN_DIR`. Opens the plan, builds its part, trains.

A rank that fails leaves `control/error_rank_N.json` behind; the supervisor turns the first of them into the `failed` event.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import traceback
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist
from filelock import FileLock, Timeout

from medsft.core.engine import native
from medsft.core.engine.batches import Batcher, Documents
from medsft.core.engine.checkpoint import find_good_checkpoint, load_checkpoint
from medsft.core.engine.formats.source import WeightSource, open_source
from medsft.core.engine.formats.vocabulary import ResizedSource
from medsft.core.engine.head import LossHead
from medsft.core.engine.mesh import HOSTS_STORE, Mesh, open_mesh
from medsft.core.engine.optim import make_optimizer
from medsft.core.engine.pipeline import Pipeline, PipelineDecoder
from medsft.core.engine.precision import make_masters
from medsft.core.engine.saving import Saver
from medsft.core.engine.sharding import build_stage
from medsft.core.engine.step import Stepper, WholeModel
from medsft.core.engine.trainer import Trainer, TrainState
from medsft.core.engine.weights import load_weights
from medsft.core.planning.plan import RunPlan
from medsft.core.planning.selection import Selection, open_selection
from medsft.core.run.events import EventWriter
from medsft.core.run.launch import read_launch
from medsft.core.run.rundir import RunDir, write_atomically
from medsft.errors import ExitCode, LaunchError, MedsftError

_WAIT_FOR_WRITER_SECONDS = 600.0
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def main(run_dir: str) -> int:
    """Train one rank and return the exit code of its process."""
    run = RunDir(Path(run_dir))
    _take_rank()
    native.compile_ahead()
    _error_path(run).unlink(missing_ok=True)  # of this rank before torchrun restarted it
    try:
        _work(run)
    except BaseException as error:
        _leave_error(run, error)
        traceback.print_exc()
        return int(error.exit_code) if isinstance(error, MedsftError) else int(ExitCode.TRAINING)
    dist.destroy_process_group()
    return int(ExitCode.DONE)


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
    plan = read_launch(run).apply(RunPlan.from_json(run.read_plan(), where=str(run.plan_path)))
    mesh = open_mesh(plan.layout)
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
    lock = FileLock(run.control / "writer.lock")
    try:
        lock.acquire(timeout=_WAIT_FOR_WRITER_SECONDS)
    except Timeout:
        raise LaunchError(f"{run.path}: other processes still train it.", hint="End them first, then resume.") from None
    return lock


def build_trainer(plan: RunPlan, run: RunDir, mesh: Mesh, events: EventWriter | None) -> Trainer:
    """Return this rank's trainer, its weights from the latest good checkpoint or from the base model."""
    model = plan.trained_model
    dtype = DTYPES[plan.precision]
    decoder = build_stage(model, mesh, compute_dtype=dtype, recompute=plan.config.recompute)
    masters = make_masters(decoder, compute_dtype=dtype, data_parallel=mesh.layout.dp > 1)
    optimizer = make_optimizer(masters, plan.config)
    iteration, damaged = find_good_checkpoint(run, mesh)
    if events:
        _report_start(plan, events, iteration or 0)
        for line in damaged:
            events.write("warning", message=line)
    if iteration is None:
        load_weights(masters.by_name, base_source(plan))
        state = TrainState()
    else:
        state = load_checkpoint(run.checkpoint_path(iteration), mesh, masters, optimizer, identity=plan.identity)
    masters.publish()
    train, val = make_batchers(plan, mesh)
    if mesh.layout.pp > 1:
        train, val = fix_shapes(plan, mesh, train, val)
    head = LossHead(decoder, plan.softmax_rows, mesh)
    stepper: Stepper
    if isinstance(decoder, PipelineDecoder):
        stepper = Pipeline(decoder, head, mesh, stream_tokens=train.fixed_tokens or 0, dtype=dtype)
    else:
        stepper = WholeModel(decoder, head, mesh)
    return Trainer(
        plan=plan,
        run=run,
        mesh=mesh,
        masters=masters,
        optimizer=optimizer,
        stepper=stepper,
        train_batches=train,
        val_batches=val,
        state=state,
        saver=Saver(run, mesh, masters, optimizer, model=model, identity=plan.identity),
        events=events,
        tied_copy=model.tie_embeddings and mesh.is_last_stage and not mesh.is_first_stage,
    )


def base_source(plan: RunPlan) -> WeightSource:
    """Open the base model, its tables lengthened for new tokens and to the rows that are trained."""
    source = open_source(Path(plan.base.path), iteration=plan.base.iteration)
    copies = plan.config.follows_original or plan.config.new_token_init == "copy_last"
    return ResizedSource(
        source,
        plan.base.model.vocab_size,
        rows=plan.trained_model.vocab_size,
        new_rows="copy_last" if copies else "mean",
    )


def make_batchers(plan: RunPlan, mesh: Mesh) -> tuple[Batcher, Batcher | None]:
    """Return the batches of training and of validation. Raises what `open_selection` raises."""
    train, val = open_selection(plan)
    # A validation is a sum over all documents, so how they are dealt does not matter; the original's dealing has no last batch.
    in_order = plan.config.follows_original
    return _batcher(plan, train, mesh, in_order=in_order), _batcher(plan, val, mesh, in_order=False) if val else None


def _batcher(plan: RunPlan, chosen: Selection, mesh: Mesh, *, in_order: bool) -> Batcher:
    return Batcher(
        Documents(chosen.data, chosen.indices, plan.config.seq, plan.config.loss_mask),
        chosen.order,
        dp=mesh.layout.dp,
        dp_rank=mesh.dp_rank,
        micro_batch=plan.micro_batch,
        multiple_of=mesh.layout.tp,
        in_order=in_order,
    )


def fix_shapes(plan: RunPlan, mesh: Mesh, train: Batcher, val: Batcher | None) -> tuple[Batcher, Batcher | None]:
    """Return the batches with streams of one size and micro-batches of one number, as the stages of a pipeline need them."""
    orders = (train.order.batch(iteration) for iteration in range(plan.num_iterations))
    tokens = max(train.largest_micro_batch(orders), val.largest_micro_batch(val.in_turn()) if val else 0)
    tokens += -tokens % mesh.layout.tp
    count = max(plan.num_micro_batches, mesh.layout.pp)
    train = replace(train, fixed_tokens=tokens, num_micro_batches=count)
    return train, replace(val, fixed_tokens=tokens, num_micro_batches=count) if val else None


def _report_start(plan: RunPlan, events: EventWriter, iteration: int) -> None:
    events.write(
        "run_started",
        iteration=iteration,
        total=plan.num_iterations,
        world_size=plan.layout.world,
        layout=str(plan.layout),
        micro_batches=plan.num_micro_batches,
        precision=plan.precision,
        host=socket.gethostname(),
        resumed=iteration > 0,
    )


def _leave_error(run: RunDir, error: BaseException) -> None:
    """Say why this rank ends, in words for people, where the supervisor looks."""
    reason, remedy = describe(error)
    code = int(error.exit_code) if isinstance(error, MedsftError) else int(ExitCode.TRAINING)
    record = {
        "rank": _rank(),
        "time": time.time(),
        "reason": reason,
        "remedy": remedy,
        "exit_code": code,
        "expected": isinstance(error, MedsftError),
    }
    write_atomically(_error_path(run), json.dumps(record))


def _error_path(run: RunDir) -> Path:
    return run.control / f"error_rank_{_rank()}.json"


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def describe(error: BaseException) -> tuple[str, str]:
    """Return (what happened, what to do) for an exception of a rank."""
    if isinstance(error, MedsftError):
        return error.message, error.hint
    text = str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text:
        return (
            "Out of memory.",
            "Use a smaller --micro_batch, --recompute full, or more --tp or --pp; `medsft plan` shows the need.",
        )
    return f"{type(error).__name__}: {text}", "The rank's log in logs/ has the traceback."


def _exit(code: int) -> NoReturn:
    """End this process without taking Python down in order.

    Threads of gloo may still let go of tensors by then; where Python is half gone, that aborts a rank whose work is done.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _exit(main(sys.argv[1]))
