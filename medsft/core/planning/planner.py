"""Makes the plan: looks at the base model, the tokenized sets, the devices and the disk, and decides what is left to decide.

`make_plan` is for a run about to start, or with `ahead` for a look at one, and raises on what is wrong. `preview` is for a
form that is still being filled in: it returns what is wrong beside what can be planned.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from medsft.core.config.check import check, doubts
from medsft.core.config.options import format_number
from medsft.core.config.run_config import RunConfig
from medsft.core.devices import Devices, assumed_devices, find_devices
from medsft.core.disk import refusal
from medsft.core.models.inspect import BaseModel
from medsft.core.models.run_folder import PLAN_NAME
from medsft.core.planning.adapter import adapter_concerns
from medsft.core.planning.alternatives import adapter_of, alternatives, checkpoint_bytes, export_bytes
from medsft.core.planning.auto_layout import LayoutChoice, LayoutInputs, choose, sample_batches, sequential_batches
from medsft.core.planning.base import find_base, ids_in_use, plan_base, with_adapter_of
from medsft.core.planning.base_plan import BasePlan
from medsft.core.planning.context import check_context, context_to_watch
from medsft.core.planning.device_concerns import device_concerns, precision_on
from medsft.core.planning.folders import check_places, export_folder_name, family_in_names, free_bytes, run_folder
from medsft.core.planning.layout import bubble_share, padded_model
from medsft.core.planning.places import find_base_again, find_sets_again, moved_to
from medsft.core.planning.plan import Estimates, RunPlan, absolute
from medsft.core.planning.row_concerns import row_concerns
from medsft.core.planning.schedule import (
    epoch_ends,
    keeps_best,
    most_kept,
    plan_eval_interval,
    plan_global_batch,
    plan_iterations,
)
from medsft.core.planning.sets import PlannedSet, training_set, training_set_or_guess, validation_set, validation_set_or_guess
from medsft.core.settings import CheckpointEntry, Settings, check_with_settings
from medsft.core.units import byte_size
from medsft.errors import ConfigError, MedsftError, MismatchError, Problem

_TOLERATED_BUBBLE = 0.2
_TOLERATED_EPOCHS = 1.25
"""Times --epochs that a plan may train before it says so."""
_MANY_EPOCHS = 3
"""Passes over the same documents after which fine-tunings mostly get worse on others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """The plan as far as it stands, for a form that is being filled in."""

    problems: tuple[Problem, ...]
    plan: RunPlan | None
    exact: bool
    """Whether documents were counted in a tokenized set, not estimated from the files of rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What a plan is made of."""

    config: RunConfig
    settings: Settings
    entry: CheckpointEntry
    base: BaseModel
    train: PlannedSet
    val: PlannedSet | None
    devices: Devices
    resumed: RunPlan | None = None
    """The plan of the run that is resumed; None: look for one in the run's folder."""


def make_plan(config: RunConfig, settings: Settings, *, ahead: bool = False, resumed: RunPlan | None = None) -> RunPlan:
    """Decide the run. The sets must have been tokenized, and the base model's weights be there.

    A run that exists, `resumed` or the one in the run's folder, keeps what was derived from the same values: its iterations,
    the documents of one, and where it validates. Another version may derive them otherwise.

    With `ahead` neither is needed: documents are estimated from the files of rows, sizes come from `config.json` alone, node 0
    needs no address, and the plan's warnings say what was assumed. Such a plan is to look at, not to start.

    Raises `ConfigError` (flags), `DataError` (sets, truncation) or `MismatchError` (base model).
    """
    found = [*check_with_settings(config, settings), *check_places(config)]
    problems = [problem for problem in found if not (ahead and problem.where == "--addr")]
    if problems:
        raise ConfigError(problems)
    entry = settings.find_checkpoint(config.checkpoint, config.size)
    base = find_base(entry, config, ahead=ahead)
    return _decide(
        _Found(
            config=config,
            settings=settings,
            entry=entry,
            base=base,
            train=training_set_or_guess(config) if ahead else training_set(config),
            val=validation_set_or_guess(config) if ahead else validation_set(config),
            devices=_devices(config, base),
            resumed=resumed,
        )
    )


def replan(plan: RunPlan, *, run_dir: Path, changes: Mapping[str, object]) -> RunPlan:
    """Return an existing run's plan with other parallel sizes or processes, its folder and how much it trains kept.

    Base model and sets are looked for where they are now (`places`). Raises what `make_plan` raises.
    """
    # The original's loss depends on the micro-batch, so that it is not chosen anew.
    kept: dict[str, object] = {"micro_batch": plan.micro_batch} if plan.config.rules.loss_depends_on_layout else {}
    kept["tokenized_data_dir"] = find_sets_again(plan, run_dir)
    config = replace(plan.config, **{**kept, **changes})  # type: ignore[arg-type]
    entry = find_base_again(plan, run_dir)
    settings = Settings(checkpoints={(entry.name, entry.size): entry}, datasets={})
    changed = make_plan(config, settings, resumed=plan)
    return replace(changed, run_dir=str(run_dir), export_dir=moved_to(plan, run_dir).export_dir, tasks=plan.tasks)


def preview(config: RunConfig, settings: Settings) -> Preview:
    """Plan what can be planned, as `make_plan` does ahead. Never raises for what a person got wrong."""
    wrong_values = [*check(config), *check_places(config)]
    problems = list(wrong_values)
    entry: CheckpointEntry | None = None
    base: BaseModel | None = None
    train: PlannedSet | None = None
    val: PlannedSet | None = None
    try:
        entry = settings.find_checkpoint(config.checkpoint, config.size)
        base = find_base(entry, config, ahead=True)
    except MedsftError as error:
        problems.extend(_as_problems(error, "--checkpoint"))
    try:
        train = training_set_or_guess(config)
    except MedsftError as error:
        problems.extend(_as_problems(error, "--data"))
    try:
        if train is not None or config.val_share is None:  # a share is of the training set, whose problem is told once
            val = validation_set_or_guess(config)
    except MedsftError as error:
        problems.extend(_as_problems(error, "--val"))
    plan = None
    if entry is not None and base is not None and train is not None and not wrong_values:
        devices = _devices(config, base)
        found = _Found(config=config, settings=settings, entry=entry, base=base, train=train, val=val, devices=devices)
        try:
            plan = _decide(found)
        except MedsftError as error:
            problems.extend(_as_problems(error, ""))
    return Preview(problems=tuple(problems), plan=plan, exact=train is not None and train.exact)


def _as_problems(error: MedsftError, where: str) -> Iterable[Problem]:
    return error.problems if isinstance(error, ConfigError) else [Problem(where, error.message, error.hint)]


def _devices(config: RunConfig, base: BaseModel) -> Devices:
    """Return this machine's devices, or assumed ones: a machine without GPUs and without the weights will not train."""
    devices = find_devices()
    if devices.kind == "cpu" and not base.size_bytes:
        return assumed_devices(config.nproc_per_node)
    return devices


def _decide(found: _Found) -> RunPlan:
    config, train = with_adapter_of(found.config, found.base), found.train
    found = replace(found, config=config)
    if config.patience is not None and not keeps_best(config, validates=found.val is not None):
        remedy = "Give validation rows, such as --val 0.05, or --keep_best accuracy:NAME, or leave --patience away."
        raise ConfigError([Problem("--patience", "there is no validation set", remedy)])
    in_use = ids_in_use(Path(train.stats.folder)) if train.exact else None
    base, notes = plan_base(config, found.entry, found.base, in_use=in_use)
    precision = precision_on(config, found.devices)
    amount = _amount(found, None)
    inputs = _layout_inputs(found, base, precision, amount)
    choice = choose(inputs)
    saved_as = found.base.saved_arguments.get("model_name")
    family = found.entry.family or family_in_names(config, base.model, saved_as=saved_as)
    run_dir = run_folder(config, family, choice.layout)
    derived, existing = amount, found.resumed or _plan_in(run_dir)
    beyond = check_context(config, base.model, train, found.val)
    if beyond and existing is None:  # a run that was begun may end
        raise ConfigError([beyond])
    if existing is not None and amount != (kept := _amount(found, existing)):
        amount, inputs = kept, _layout_inputs(found, base, precision, kept)
        choice = choose(inputs)
    iterations = amount.iterations
    plan = RunPlan(
        config=config,
        run_dir=str(run_dir),
        export_dir=absolute(Path(config.save_checkpoint_dir) / export_folder_name(config, family)),
        base=base,
        train=train.stats,
        val=found.val.stats if found.val else None,
        num_iterations=iterations,
        epochs=round(iterations * amount.global_batch / train.stats.documents, 4),
        global_batch=amount.global_batch,
        eval_interval=amount.eval_interval,
        precision=precision,
        layout=choice.layout,
        nproc_per_node=choice.nproc_per_node,
        micro_batch=choice.micro_batch,
        num_micro_batches=choice.num_micro_batches,
        recompute=choice.work.recompute,
        reshard=choice.work.reshard,
        estimates=_estimates(found, base, inputs, choice, amount=amount),
        warnings=(),
    )
    derived_otherwise = _amount_concerns(plan) if amount == derived else _kept(existing, plan)
    concerns = [*_concerns(found, plan), *derived_otherwise, *([str(beyond)] if beyond else [])]
    return replace(plan, warnings=(*found.base.warnings, *_assumptions(found, base, notes), *concerns))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Amount:
    """How much is trained."""

    global_batch: int
    iterations: int
    eval_interval: int


def _amount(found: _Found, existing: RunPlan | None) -> _Amount:
    """Return what follows from the config; of a run that exists what followed from the same values when it was planned."""
    config, trained = found.config, found.train.stats.documents
    batch = plan_global_batch(config, trained)
    all_of_set = found.train.withheld if config.rules.withholds_documents else 0  # the original counts all of its set
    iterations = plan_iterations(config, trained + all_of_set, batch)
    interval = plan_eval_interval(config, iterations)
    if existing is None:
        return _Amount(global_batch=batch, iterations=iterations, eval_interval=interval)

    def same(*names: str) -> bool:
        return all(getattr(existing.config, name) == getattr(config, name) for name in names)

    if same("global_batch", "compat"):
        batch = existing.global_batch
        iterations = existing.num_iterations if same("epochs", "iters", "max_iters") else iterations
    if config.eval_interval is None:
        interval = existing.eval_interval
    return _Amount(global_batch=batch, iterations=iterations, eval_interval=interval)


def _plan_in(run_dir: Path) -> RunPlan | None:
    """Return the plan of the run in this folder; None when there is none, or a damaged one, about which `workflow` decides."""
    path = run_dir / PLAN_NAME
    with suppress(MismatchError):
        return RunPlan.read(path) if path.is_file() else None
    return None


def _layout_inputs(found: _Found, base: BasePlan, precision: str, amount: _Amount) -> LayoutInputs:
    config, labels = found.config, found.train.subset.num_labels
    pp = config.pp or found.base.pp
    order = replace(found.train.order, global_batch=amount.global_batch)
    batches, longest = sample_batches(order, labels), int(labels.max())
    if found.val is not None and pp != 1:  # the streams of a pipeline have one size, in training and in validation
        batches += sequential_batches(amount.global_batch, found.val.subset.num_labels)
        longest = max(longest, int(found.val.subset.num_labels.max()))
    return LayoutInputs(
        config=config,
        global_batch=amount.global_batch,
        model=base.model,
        tp=config.tp or found.base.tp,
        pp=pp,
        devices=found.devices,
        precision=precision,
        adapter=adapter_of(config, precision=precision, rows=base.trained_rows),
        batches=batches,
        longest=longest,
    )


def _estimates(found: _Found, base: BasePlan, inputs: LayoutInputs, choice: LayoutChoice, *, amount: _Amount) -> Estimates:
    config, devices, precision = found.config, found.devices, inputs.precision
    model = padded_model(base.model, tp=choice.layout.tp, vocab_multiple=config.rules.vocab_multiple)
    adapter = adapter_of(config, precision=precision, rows=base.trained_rows)
    checkpoint = checkpoint_bytes(model, adapter, optimizer=config.optimizer, precision=precision)
    interval = amount.eval_interval if keeps_best(config, validates=found.val is not None) else None
    ends = epoch_ends(found.train.stats.documents, amount.global_batch, amount.iterations)
    kept = most_kept(config, amount.iterations, eval_interval=interval, ends=ends)
    exported = export_bytes(model, adapter, export=config.export, precision=precision)
    if config.export_checkpoint == "both" and keeps_best(config, validates=found.val is not None):
        exported *= 2
    device_memory = devices.memory_per_rank(choice.nproc_per_node)

    def planned(other: RunConfig) -> int:
        kind = adapter_of(other, precision=precision, rows=base.trained_rows)
        return choose(replace(inputs, config=other, adapter=kind)).memory.total

    return Estimates(
        memory=choice.memory,
        device_kind=devices.kind,
        device_name=devices.name,
        device_memory=device_memory,
        stream_tokens=choice.stream_tokens,
        checkpoint_bytes=checkpoint,
        disk_needed=kept * checkpoint + exported,
        alternatives=alternatives(
            config,
            model,
            choice.layout,
            choice.work,
            precision=precision,
            rows=base.trained_rows,
            device_memory=device_memory,
            planned=planned,
        ),
    )


def _amount_concerns(plan: RunPlan) -> list[str]:
    """Return where the plan trains something else than --epochs and --global_batch say."""
    config, lines = plan.config, []
    if plan.global_batch < config.global_batch:
        lines.append(
            f"--global_batch {config.global_batch} is more than {'an epoch has' if plan.train.mixture else 'there are'} "
            f"documents: each iteration takes all {plan.global_batch:,} once."
        )
    asked = config.iters is None and config.max_iters is None and config.rules.iterations_multiple is None
    if asked and plan.epochs > _TOLERATED_EPOCHS * config.epochs:
        lines.append(
            f"--epochs {format_number(config.epochs)} becomes {plan.epochs:.3g}, in whole iterations of "
            f"{plan.global_batch} documents; a smaller --global_batch comes nearer."
        )
    if plan.epochs * (1 - 1 / plan.num_iterations) >= _MANY_EPOCHS:  # without the last iteration, which rounding may add
        watched = "the best checkpoint is kept" if plan.keeps_best else "give --val, so that the best checkpoint is kept"
        lines.append(f"{plan.epochs:.3g} epochs: after {_MANY_EPOCHS}, models mostly learn rows by heart; {watched}.")
    if plan.layout.dp > plan.global_batch:
        idle = plan.layout.dp - plan.global_batch
        lines.append(f"{idle} of {plan.layout.dp} data-parallel ranks get no document. Use a smaller --nproc_per_node.")
    return lines


def _kept(existing: RunPlan | None, plan: RunPlan) -> list[str]:
    """Return that an existing run keeps what would be derived otherwise now; a change that was asked for is said elsewhere."""
    if existing is None or existing.num_iterations != plan.num_iterations:
        return []
    amount = f"{plan.num_iterations} iterations of {plan.global_batch} documents"
    return [f"{plan.run_dir} keeps the {amount} that it was planned with; the rule for new runs is another."]


def _assumptions(found: _Found, base: BasePlan, notes: Sequence[str]) -> list[str]:
    """Return what was assumed where something is not there to be looked at; `notes` are those of the template."""
    lines = []
    if not found.base.size_bytes:
        if found.entry.tokenizer is None and found.base.tokenizer is None:
            lines.append("No tokenizer beside it either: tokens that the template adds are not counted.")
        if found.devices == assumed_devices(found.config.nproc_per_node):
            lines.append(f"The devices are not those of this machine: {found.devices.name} is assumed.")
    if not found.train.exact:
        lines.append("Nothing is tokenized yet: documents and tokens are estimated from the files of rows.")
        lines += notes  # those of a tokenized set stand in its manifest
        lines += context_to_watch(found.config, base.model, found.train)
    elif found.val is not None and not found.val.exact:
        lines.append("The validation set is not tokenized yet: its documents and tokens are estimated from the files of rows.")
    return lines


def _concerns(found: _Found, plan: RunPlan) -> list[str]:
    """Return what a person should know before the run starts, though it can."""
    config, train, estimates = plan.config, plan.train, plan.estimates
    lines = [*doubts(config), *found.train.notes, *row_concerns(found.train, found.val, plan)]
    lines += [*adapter_concerns(config.lora, plan.base.model), *device_concerns(plan, found.devices)]
    expected = found.settings.expected_documents(config.run_name)
    counted = len(found.train.subset) - train.text_pieces + train.texts + found.train.withheld
    if expected is not None and expected != counted:
        lines.append(f"medsft.toml says {expected:,} documents for {config.run_name}, the set has {counted:,}.")
    if found.train.withheld and config.rules.withholds_documents:
        validated = f", {plan.val.documents:,} of them to validate on" if plan.val else ""
        lines.append(f"No --val: as the original, {found.train.withheld:,} documents are not trained on{validated}.")
    if train.left_out:
        lines.append(f"{train.left_out:,} documents are left out (--truncate {config.truncate}).")
    idle = bubble_share(plan.layout.pp, plan.num_micro_batches)
    if idle > _TOLERATED_BUBBLE:
        lines.append(
            f"{plan.num_micro_batches} micro-batches leave {plan.layout.pp} pipeline stages idle for {idle:.0%}; "
            f"lower --micro_batch or --pp, or raise --global_batch."
        )
    needed = {"--save_checkpoint_dir": Path(plan.run_dir)}
    if not found.train.exact:
        needed["--tokenized_data_dir"] = Path(config.tokenized_data_dir)
    lines += [f"{flag}: {trouble.message}" for flag, folder in needed.items() if (trouble := refusal(folder)) is not None]
    if found.base.size_bytes and estimates.disk_needed > free_bytes(Path(plan.run_dir)):
        # Not how much is free: a plan says the same each time it is made.
        lines.append(
            f"Checkpoints and the finished model need {byte_size(estimates.disk_needed)}, more than is free under "
            f"{Path(config.save_checkpoint_dir)}."
        )
    return lines
