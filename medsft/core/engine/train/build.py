"""A rank's trainer out of a plan: its part of the model, its weights, its batches."""

from __future__ import annotations

import socket
from collections.abc import Collection
from dataclasses import replace
from functools import partial

from torch import Tensor

from medsft.core.config.eval_tasks import best_task
from medsft.core.engine.formats.source import DTYPES
from medsft.core.engine.formats.vocabulary import ResizedSource
from medsft.core.engine.nn.adapters import Adapter
from medsft.core.engine.nn.model import Decoder
from medsft.core.engine.nn.quantized import QuantizedWeight
from medsft.core.engine.parallel.master_weights import make_master_weights
from medsft.core.engine.parallel.mesh import Mesh
from medsft.core.engine.parallel.sharding import build_stage
from medsft.core.engine.train.adamw8bit import AdamW8bit, compile_update
from medsft.core.engine.train.adapters import begin_adapter, record_adapter, start_of
from medsft.core.engine.train.arithmetic import check_arithmetic
from medsft.core.engine.train.async_save import Saver
from medsft.core.engine.train.base_weights import base_source, check_base
from medsft.core.engine.train.batches import Batcher
from medsft.core.engine.train.checkpoint import find_good_checkpoint, load_checkpoint
from medsft.core.engine.train.head import LossHead
from medsft.core.engine.train.optim import make_optimizer
from medsft.core.engine.train.pipeline import PipelineDecoder, make_executor
from medsft.core.engine.train.questions import open_tasks
from medsft.core.engine.train.trainer import Trainer, TrainState
from medsft.core.engine.train.weights import load_weights
from medsft.core.models.run_folder import read_manifest
from medsft.core.planning.optimizer import has_fp32_masters
from medsft.core.planning.plan import RunPlan
from medsft.core.planning.selection import Split, open_splits
from medsft.core.planning.trainable import trainable_names
from medsft.core.run.events import EventWriter
from medsft.core.run.integrity import set_damage
from medsft.core.run.rundir import RunDir
from medsft.errors import DataError


def build_trainer(
    plan: RunPlan, run: RunDir, mesh: Mesh, events: EventWriter | None, *, trainable: Collection[str] | None = None
) -> Trainer:
    """Return this rank's trainer, its weights from the latest good checkpoint or from the base model.

    Only the weights named in `trainable` (default: those of `trainable_names`) are trained. The others come from the base model
    at each start.
    """
    model, lora, adapter = plan.trained_model, plan.config.lora, None
    source: ResizedSource | None = None
    if lora is not None:
        check_base(plan, mesh)
        source, notes = base_source(plan)
        precision = plan.config.base_precision or plan.precision
        start_rows = plan.base.adapter.rows if plan.base.adapter else ()
        adapter = Adapter(lora=lora, rows=tuple(sorted({*source.made_rows, *start_rows})), base_precision=precision)
    rows = len(adapter.rows) if adapter else 0
    trainable = trainable_names(model, lora, rows) if trainable is None else trainable
    dtype = DTYPES[plan.precision]
    in_fp32 = has_fp32_masters(plan.config.optimizer, bf16=plan.precision == "bf16", adapter=adapter is not None)
    decoder = build_stage(
        model,
        mesh,
        compute_dtype=dtype,
        trainable=trainable,
        recompute=plan.recompute,
        reshard=plan.reshard,
        decoder_class=PipelineDecoder if mesh.layout.pp > 1 else Decoder,
        adapter=adapter,
        master_dtype=DTYPES["fp32"] if in_fp32 else dtype,
    )
    masters = make_master_weights(decoder, compute_dtype=dtype, data_parallel=mesh.layout.dp > 1)
    optimizer = make_optimizer(masters, plan.config)
    not_compiled = compile_update(optimizer, list(masters.by_name.values()), mesh) if isinstance(optimizer, AdamW8bit) else ""
    iteration, damaged = find_good_checkpoint(run, mesh)
    if events:
        _report_start(plan, events, iteration or 0)
        for line in damaged:
            events.write("warning", message=line)
        if not_compiled:
            slower = "The optimizer's update is not compiled, so it takes longer and gives other last digits"
            events.write("warning", message=f"{slower}: {not_compiled}")
    before = None if iteration is None else read_manifest(run.checkpoint_path(iteration)).get("arithmetic")
    for line in check_arithmetic(mesh, before):
        if events:
            events.write("warning", message=line)
    frozen = not all(name in trainable for name, _ in model.parameter_shapes())
    record = record_adapter(plan, adapter) if adapter else None
    if iteration is None or frozen:
        if source is None:
            check_base(plan, mesh)
            source, notes = base_source(plan)
        if events and iteration is None:
            for line in notes:
                events.write("warning", message=line)
        not_saved: dict[str, Tensor | QuantizedWeight] = {**masters.frozen, **masters.quantized}
        load_weights(not_saved if iteration is not None or adapter else {**masters.by_name, **not_saved}, source)
        if iteration is None and adapter:
            begin_adapter(masters.by_name, adapter, source, plan.config.seed, start_of(plan))
    if iteration is None:
        state = TrainState()
    else:
        path, identity = run.checkpoint_path(iteration), plan.identity
        state = load_checkpoint(path, mesh, masters, optimizer, identity=identity, trainable=trainable, adapter=record)
    if plan.keeps_best:
        state.compare_by(plan.config.keep_best)
    masters.copy_to_compute()
    check_sets(plan, mesh)
    train, val = make_batchers(plan, mesh)
    if mesh.layout.pp > 1:
        train, val = pad_for_pipeline(plan, mesh, train, val)
    head = LossHead(decoder, plan.softmax_rows, mesh)
    executor_for = partial(make_executor, decoder, head, mesh, dtype=dtype, reshard=plan.reshard)
    # Of an adapter's tables there are the rows of tokens alone, without a padding: what is read later is as long as that.
    described = plan.base.model if adapter else model
    return Trainer(
        plan=plan,
        run=run,
        mesh=mesh,
        masters=masters,
        optimizer=optimizer,
        executor=executor_for(train.fixed_tokens or 0),
        tasks=open_tasks(plan, mesh, executor_for),
        train_batches=train,
        val_batches=val,
        state=state,
        saver=Saver(run, mesh, masters, optimizer, model=described, identity=plan.identity, adapter=record),
        events=events,
        tied_copy=model.tie_embeddings and mesh.is_last_stage and not mesh.is_first_stage,
    )


def check_sets(plan: RunPlan, mesh: Mesh) -> None:
    """Raise `DataError` when a file of a set is not as it was written. Every rank must call it: one reads, for all."""
    problem = None
    if mesh.reports:
        damaged = ((folder, set_damage(folder)) for folder in plan.set_folders())
        problem = next((f"The tokenized set in {folder} is damaged: {what}." for folder, what in damaged if what), None)
    found = mesh.gather(problem)[0]
    if found is not None:
        raise DataError(str(found), hint="Make the set again: medsft tokenize with the same flags and --retokenize.")


def make_batchers(plan: RunPlan, mesh: Mesh) -> tuple[Batcher, Batcher | None]:
    """Return the batches of training and of validation. Raises what `open_splits` raises."""
    train, val = open_splits(plan)
    # A validation is a sum over all documents, so how they are dealt does not matter; the original's dealing has no last batch.
    in_order = plan.config.rules.deals_in_order
    return _batcher(plan, train, mesh, in_order=in_order), _batcher(plan, val, mesh, in_order=False) if val else None


def _batcher(plan: RunPlan, split: Split, mesh: Mesh, *, in_order: bool) -> Batcher:
    return Batcher(
        split,
        plan.config.loss_mask,
        dp=mesh.layout.dp,
        dp_rank=mesh.dp_rank,
        micro_batch=plan.micro_batch,
        multiple_of=mesh.layout.tp,
        in_order=in_order,
    )


def pad_for_pipeline(plan: RunPlan, mesh: Mesh, train: Batcher, val: Batcher | None) -> tuple[Batcher, Batcher | None]:
    """Return the batches with streams of one size and micro-batches of one number, as the stages of a pipeline need them."""
    orders = (train.split.order.batch(iteration) for iteration in range(plan.num_iterations))
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
        **({"keep_best": plan.config.keep_best} if best_task(plan.config.keep_best) is not None else {}),
    )
