"""A rank's trainer out of a plan: its part of the model, its weights, its batches."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

from medsft.core.engine.formats.open import open_source
from medsft.core.engine.formats.source import DTYPES, WeightSource
from medsft.core.engine.formats.untrained import untrained_rows
from medsft.core.engine.formats.vocabulary import TABLES, ResizedSource
from medsft.core.engine.nn.model import Decoder
from medsft.core.engine.parallel.master_weights import make_master_weights
from medsft.core.engine.parallel.mesh import Mesh
from medsft.core.engine.parallel.sharding import build_stage
from medsft.core.engine.train.arithmetic import check_arithmetic
from medsft.core.engine.train.async_save import Saver
from medsft.core.engine.train.batches import Batcher, Documents
from medsft.core.engine.train.checkpoint import find_good_checkpoint, load_checkpoint
from medsft.core.engine.train.head import LossHead
from medsft.core.engine.train.optim import make_optimizer
from medsft.core.engine.train.pipeline import Pipeline, PipelineDecoder
from medsft.core.engine.train.step import Executor, SingleStage
from medsft.core.engine.train.trainer import Trainer, TrainState
from medsft.core.engine.train.weights import load_weights
from medsft.core.models.inspect import inspect_base
from medsft.core.planning.plan import RunPlan
from medsft.core.planning.selection import Selection, open_selection
from medsft.core.run.events import EventWriter
from medsft.core.run.integrity import damage, set_damage
from medsft.core.run.rundir import RunDir, read_manifest
from medsft.errors import DataError, MismatchError


def build_trainer(plan: RunPlan, run: RunDir, mesh: Mesh, events: EventWriter | None) -> Trainer:
    """Return this rank's trainer, its weights from the latest good checkpoint or from the base model."""
    model = plan.trained_model
    dtype = DTYPES[plan.precision]
    decoder = build_stage(
        model,
        mesh,
        compute_dtype=dtype,
        recompute=plan.config.recompute,
        decoder_class=PipelineDecoder if mesh.layout.pp > 1 else Decoder,
    )
    masters = make_master_weights(decoder, compute_dtype=dtype, data_parallel=mesh.layout.dp > 1)
    optimizer = make_optimizer(masters, plan.config)
    iteration, damaged = find_good_checkpoint(run, mesh)
    if events:
        _report_start(plan, events, iteration or 0)
        for line in damaged:
            events.write("warning", message=line)
    before = None if iteration is None else read_manifest(run.checkpoint_path(iteration)).get("arithmetic")
    for line in check_arithmetic(mesh, before):
        if events:
            events.write("warning", message=line)
    if iteration is None:
        check_base(plan, mesh)
        source, notes = base_source(plan)
        if events:
            for line in notes:
                events.write("warning", message=line)
        load_weights(masters.by_name, source)
        state = TrainState()
    else:
        state = load_checkpoint(run.checkpoint_path(iteration), mesh, masters, optimizer, identity=plan.identity)
    masters.copy_to_compute()
    check_sets(plan, mesh)
    train, val = make_batchers(plan, mesh)
    if mesh.layout.pp > 1:
        train, val = pad_for_pipeline(plan, mesh, train, val)
    head = LossHead(decoder, plan.softmax_rows, mesh)
    executor: Executor
    if isinstance(decoder, PipelineDecoder):
        executor = Pipeline(decoder, head, mesh, stream_tokens=train.fixed_tokens or 0, dtype=dtype)
    else:
        executor = SingleStage(decoder, head, mesh)
    return Trainer(
        plan=plan,
        run=run,
        mesh=mesh,
        masters=masters,
        optimizer=optimizer,
        executor=executor,
        train_batches=train,
        val_batches=val,
        state=state,
        saver=Saver(run, mesh, masters, optimizer, model=model, identity=plan.identity),
        events=events,
        tied_copy=model.tie_embeddings and mesh.is_last_stage and not mesh.is_first_stage,
    )


def check_base(plan: RunPlan, mesh: Mesh) -> None:
    """Raise `MismatchError` on every rank when the base model is a checkpoint of a run and not as it was written."""
    problem = None
    if plan.base.kind == "medsft-run" and mesh.reports:
        weights = inspect_base(Path(plan.base.path), plan.base.iteration).weights
        found = damage(weights)
        problem = found and f"{weights}, the base model, is damaged: {found}"
    if told := mesh.gather(problem)[0]:
        raise MismatchError(str(told), hint="Copy it again, or start another run: --intermediate_iter N.")


def base_source(plan: RunPlan) -> tuple[WeightSource, list[str]]:
    """Open the base model, its tables lengthened for new tokens and to the rows that are trained; and what to say about rows.

    Rows in the base's table that a new token takes are made anew like those behind it, and so are rows of control tokens in the
    documents that the base never trained. The original leaves them as they are, and so does a run that repeats it.
    """
    base, rules = plan.base, plan.config.rules
    source = open_source(Path(base.path), iteration=base.iteration)
    untrained = untrained_rows(source, base.control_tokens.values())
    named = {row: token for token, row in base.control_tokens.items()}
    tokens = ", ".join(named[row] for row in sorted(set().union(*untrained.values())))
    copies = (rules.new_token_init or plan.config.new_token_init) == "copy_last"
    remade = {table: {*rows, *base.reused_rows.values()} for table, rows in untrained.items()}
    notes = []
    if tokens and not rules.remakes_rows:
        notes.append(
            f"The base model never trained the rows of {tokens}, which the documents hold; as in the original, they stay."
        )
    elif tokens:
        made = "a copy of the last trained row" if copies else "the mean of the trained rows"
        notes.append(f"The base model never trained the rows of {tokens}, which the documents hold: each begins as {made}.")
    resized = ResizedSource(
        source,
        base.model.vocab_size,
        rows=plan.trained_model.vocab_size,
        new_rows="copy_last" if copies else "mean",
        remade=(remade or {table: set(base.reused_rows.values()) for table in TABLES}) if rules.remakes_rows else None,
        trained=base.token_rows if rules.remakes_rows else None,
    )
    return resized, notes


def check_sets(plan: RunPlan, mesh: Mesh) -> None:
    """Raise `DataError` when a file of a set is not as it was written. Every rank must call it: one reads, for all."""
    problem = None
    if mesh.reports:
        damaged = ((folder, set_damage(folder)) for folder in plan.set_folders())
        problem = next((f"The tokenised set in {folder} is damaged: {what}." for folder, what in damaged if what), None)
    found = mesh.gather(problem)[0]
    if found is not None:
        raise DataError(str(found), hint="Make the set again: medsft tokenize with the same flags and --retokenize.")


def make_batchers(plan: RunPlan, mesh: Mesh) -> tuple[Batcher, Batcher | None]:
    """Return the batches of training and of validation. Raises what `open_selection` raises."""
    train, val = open_selection(plan)
    # A validation is a sum over all documents, so how they are dealt does not matter; the original's dealing has no last batch.
    in_order = plan.config.rules.deals_in_order
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


def pad_for_pipeline(plan: RunPlan, mesh: Mesh, train: Batcher, val: Batcher | None) -> tuple[Batcher, Batcher | None]:
    """Return the batches with streams of one size and micro-batches of one number, as the stages of a pipeline need them."""
    orders = (train.order.batch(iteration) for iteration in range(plan.num_iterations))
    tokens = max(train.largest_micro_batch(orders), val.largest_micro_batch(val.sequential_batches()) if val else 0)
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
