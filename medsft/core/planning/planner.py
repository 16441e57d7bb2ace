"""Makes the plan: looks at the base model, the tokenised sets, the devices and the disk, and decides what is left to decide.

`make_plan` is for a run about to start, or with `ahead` for a look at one, and raises on what is wrong. `preview` is for a
form that is still being filled in: it returns what is wrong beside what can be planned.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from medsft.core.basemodel import BaseModel
from medsft.core.config import RunConfig, check
from medsft.core.devices import Devices, assumed_devices, find_devices
from medsft.core.planning.base import find_base, plan_base
from medsft.core.planning.choose import Choice, Situation, batches_in_turn, choose, sample_batches
from medsft.core.planning.folders import export_folder_name, family_name, free_bytes, run_folder
from medsft.core.planning.layout import bubble_share, padded_model
from medsft.core.planning.plan import BasePlan, Estimates, RunPlan, absolute
from medsft.core.planning.schedule import plan_iterations
from medsft.core.planning.sets import PlannedSet, training_set, training_set_or_guess, validation_set
from medsft.core.registry import CheckpointEntry, Settings, check_with_settings
from medsft.errors import ConfigError, MedsftError, Problem

_TOLERATED_BUBBLE = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """The plan as far as it stands, for a form that is being filled in."""

    problems: tuple[Problem, ...]
    plan: RunPlan | None
    exact: bool
    """Whether documents were counted in a tokenised set, not estimated from the JSONL."""


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


def make_plan(config: RunConfig, settings: Settings, *, ahead: bool = False) -> RunPlan:
    """Decide the run. The sets must have been tokenised, and the base model's weights be there.

    With `ahead` neither is needed: documents are estimated from the JSONL, sizes come from `config.json` alone, node 0 needs no
    address, and the plan's warnings say what was supposed. Such a plan is to look at, not to start.

    Raises `ConfigError` (flags), `DataError` (sets, truncation) or `MismatchError` (base model).
    """
    problems = [problem for problem in check_with_settings(config, settings) if not (ahead and problem.where == "--addr")]
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
            val=validation_set(config),
            devices=_devices(config, base),
        )
    )


def replan(plan: RunPlan, *, run_dir: Path, changes: Mapping[str, object]) -> RunPlan:
    """Return an existing run's plan with other levels or processes, its folder and its number of iterations kept.

    Raises what `make_plan` raises.
    """
    kept: dict[str, object] = {"iters": plan.num_iterations}
    if plan.config.follows_original:  # its loss depends on it, so it is not chosen anew
        kept["micro_batch"] = plan.micro_batch
    config = replace(plan.config, **{**kept, **changes})  # type: ignore[arg-type]
    entry = CheckpointEntry(
        name=config.checkpoint,
        size=config.size,
        path=Path(plan.base.path),
        family=None,
        tokenizer=Path(plan.base.tokenizer),
        source=run_dir,
    )
    settings = Settings(checkpoints={(entry.name, entry.size): entry}, datasets={})
    changed = make_plan(config, settings)
    return replace(changed, config=replace(config, iters=plan.config.iters), run_dir=str(run_dir), export_dir=plan.export_dir)


def preview(config: RunConfig, settings: Settings) -> Preview:
    """Plan what can be planned, as `make_plan` does ahead. Never raises for what a person got wrong."""
    wrong_values = check(config)
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
        val = validation_set(config) if config.run_name else None
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
    """Return this machine's devices, or supposed ones: a machine without GPUs and without the weights will not train."""
    devices = find_devices()
    if devices.kind == "cpu" and not base.size_bytes:
        return assumed_devices(config.nproc_per_node)
    return devices


def _decide(found: _Found) -> RunPlan:
    config, train = found.config, found.train
    base = plan_base(config, found.entry, found.base)
    precision = _precision(config, found.devices)
    choice = choose(_situation(found, base, precision))
    documents = train.plan.documents + train.withheld  # the original counts all of its set
    iterations = config.iters or plan_iterations(documents, config.epochs, config.global_batch)
    iterations = min(iterations, config.max_iters or iterations)
    family = found.entry.family or family_name(base.model)
    run_dir = run_folder(config, family, choice.layout)
    plan = RunPlan(
        config=config,
        run_dir=str(run_dir),
        export_dir=absolute(Path(config.save_checkpoint_dir) / export_folder_name(config, family)),
        base=base,
        train=train.plan,
        val=found.val.plan if found.val else None,
        num_iterations=iterations,
        epochs=round(iterations * config.global_batch / train.plan.documents, 4),
        precision=precision,
        layout=choice.layout,
        nproc_per_node=choice.nproc_per_node,
        micro_batch=choice.micro_batch,
        num_micro_batches=choice.num_micro_batches,
        estimates=_estimates(found, base, choice, precision=precision, num_iterations=iterations),
        warnings=(),
    )
    return replace(plan, warnings=(*found.base.warnings, *_suppositions(found), *_concerns(found, plan)))


def _precision(config: RunConfig, devices: Devices) -> str:
    if config.precision == "auto":
        return "bf16" if devices.bf16 else "fp32"
    return config.precision


def _situation(found: _Found, base: BasePlan, precision: str) -> Situation:
    config, lengths = found.config, found.train.lengths
    pp = config.pp or found.base.pp
    batches, longest = sample_batches(found.train.order, lengths), int(lengths.max())
    if found.val is not None and pp != 1:  # the streams of a pipeline have one size, in training and in validation
        batches += batches_in_turn(config, found.val.lengths)
        longest = max(longest, int(found.val.lengths.max()))
    return Situation(
        config=config,
        model=base.model,
        tp=config.tp or found.base.tp,
        pp=pp,
        devices=found.devices,
        precision=precision,
        batches=batches,
        longest=longest,
    )


def _estimates(found: _Found, base: BasePlan, choice: Choice, *, precision: str, num_iterations: int) -> Estimates:
    config, devices = found.config, found.devices
    trained = padded_model(base.model, tp=choice.layout.tp, like_original=config.follows_original)
    parameters = trained.num_parameters()
    checkpoint = 12 * parameters  # masters and both moments
    saves = math.ceil(num_iterations / config.save_interval)
    kept = min(saves, config.keep_last + 1 if config.keep_last else saves)
    exported = (2 if precision == "bf16" else 4) * parameters
    return Estimates(
        memory=choice.memory,
        device_kind=devices.kind,
        device_name=devices.name,
        device_memory=devices.memory_per_rank(choice.nproc_per_node),
        stream_tokens=choice.stream_tokens,
        checkpoint_bytes=checkpoint,
        disk_needed=kept * checkpoint + exported,
    )


def _suppositions(found: _Found) -> list[str]:
    """Return what was supposed where something is not there to be looked at."""
    lines = []
    if not found.base.size_bytes:
        lines.append(f"{found.base.path} has a config.json and no weights: a plan can be made, a run cannot start.")
        if found.entry.tokenizer is None and found.base.tokenizer is None:
            lines.append("No tokenizer beside it either: tokens that the template adds are not counted.")
        if found.devices == assumed_devices(found.config.nproc_per_node):
            lines.append(f"The devices are not those of this machine: {found.devices.name} is supposed.")
    if not found.train.exact:
        lines.append("Nothing is tokenised yet: documents and tokens are estimated from the JSONL.")
    return lines


def _concerns(found: _Found, plan: RunPlan) -> list[str]:
    """Return what a person should know before the run starts, though it can."""
    config, train, estimates = plan.config, plan.train, plan.estimates
    lines = [*found.train.notes]
    expected, counted = found.settings.expected_documents(config.run_name), train.documents + found.train.withheld
    if expected is not None and expected != counted:
        lines.append(f"medsft.toml says {expected:,} documents for {config.run_name}, the set has {counted:,}.")
    if found.train.withheld:
        validated = f", {plan.val.documents:,} of them to validate on" if plan.val else ""
        lines.append(f"No --val: as the original, {found.train.withheld:,} documents are not trained on{validated}.")
    if train.left_out:
        lines.append(f"{train.left_out:,} documents are left out (--truncate {config.truncate}).")
    if config.precision == "bf16" and not found.devices.bf16:
        lines.append(f"{found.devices.name} multiplies in fp32: --precision bf16 is no faster here, it only takes less memory.")
    idle = bubble_share(plan.layout.pp, plan.num_micro_batches)
    if idle > _TOLERATED_BUBBLE:
        lines.append(
            f"{plan.num_micro_batches} micro-batches leave {plan.layout.pp} pipeline stages idle for {idle:.0%}; "
            f"lower --micro_batch or --pp, or raise --global_batch."
        )
    if estimates.memory.total > estimates.device_memory:
        lines.append(
            f"A rank needs about {estimates.memory.total / 1e9:.1f} GB and has {estimates.device_memory / 1e9:.1f} GB: it will "
            "run out of memory. Use a smaller --micro_batch, --recompute full, or more --tp or --pp."
        )
    if found.base.size_bytes and estimates.disk_needed > free_bytes(Path(plan.run_dir)):
        # Not how much is free: a plan says the same each time it is made.
        lines.append(
            f"Checkpoints and the finished model need {estimates.disk_needed / 1e9:.1f} GB, more than is free under "
            f"{Path(config.save_checkpoint_dir)}."
        )
    return lines
