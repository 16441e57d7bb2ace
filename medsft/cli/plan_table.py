"""A plan as a table for people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from medsft.core.planning.folders import free_bytes
from medsft.core.units import byte_size, count, duration, short_count

if TYPE_CHECKING:
    from medsft.core.forecast import Forecast
    from medsft.core.planning.plan import DatasetStats, RunPlan
    from medsft.core.rehearsal import Rehearsal


def plan_rows(plan: RunPlan) -> list[tuple[str, str]]:
    """Return (what, value) for everything a person decides by."""
    estimates, memory = plan.estimates, plan.estimates.memory
    fits = "fits" if memory.total <= estimates.device_memory else "DOES NOT FIT"
    parts = ("weights", "gradients", "optimizer", "activations", "process")
    supervised = plan.train.supervised_tokens * plan.epochs
    nodes = f" on each of {plan.config.nodes} nodes" if plan.config.nodes > 1 else ""
    rows = [
        ("run", plan.run_dir),
        ("base model", f"{plan.base.path} ({plan.base.kind}, {short_count(plan.base.model.num_parameters())} parameters)"),
        ("new tokens", ", ".join(plan.base.added_tokens) or "none"),
        ("training set", _data(plan.train)),
        ("validation set", _data(plan.val) if plan.val else "none"),
        ("iterations", f"{count(plan.num_iterations)} of {plan.global_batch} documents ({plan.epochs:.2f} epochs)"),
        ("validations", _validations(plan)),
        ("supervised tokens", short_count(supervised) if supervised else ""),
        ("layout", f"{plan.layout}: {plan.nproc_per_node} process{'es' if plan.nproc_per_node > 1 else ''}{nodes}"),
        ("micro-batches", f"{plan.num_micro_batches} of about {plan.micro_batch} documents, on each rank and iteration"),
        ("precision", plan.precision),
        ("device", f"{estimates.device_name} ({estimates.device_kind})"),
        ("memory per rank", f"{byte_size(memory.total)} of {byte_size(estimates.device_memory)}: {fits}"),
        ("", ", ".join(f"{part} {byte_size(getattr(memory, part))}" for part in parts)),
        ("checkpoint", byte_size(estimates.checkpoint_bytes)),
        ("disk", f"{byte_size(estimates.disk_needed)} needed, {byte_size(free_bytes(Path(plan.run_dir)))} free"),
        ("finished model", plan.export_dir),
    ]
    return [(what, value) for what, value in rows if value]


def _validations(plan: RunPlan) -> str:
    """Return when the run validates; nothing without a validation set."""
    if plan.val is None:
        return ""
    interval = f"every {count(plan.eval_interval)} iterations" if plan.eval_interval > 1 else "after each iteration"
    parts = [interval, "after the last"]
    if plan.config.rules.validates_epochs:
        parts = ["before the first", *parts[:1], *(["after each epoch"] if plan.epoch_ends else []), *parts[1:]]
    return f"{count(plan.num_validations)}: {', '.join(parts)}"


def _data(data: DatasetStats) -> str:
    left_out = f", {count(data.left_out)} left out" if data.left_out else ""
    return f"{count(data.documents)} documents, {short_count(data.tokens)} tokens{left_out} (longest {count(data.longest)})"


def _time(guess: Forecast | None) -> str:
    if guess is None:
        return "not known: no such run here yet; `medsft rehearse` measures it"
    return f"about {duration(guess.seconds)}, {guess.basis}"


def rehearsal_rows(rehearsal: Rehearsal) -> list[tuple[str, str]]:
    """Return (what, value) for what a rehearsal measured and forecasts."""
    memory = f"{byte_size(rehearsal.memory_bytes)} of {byte_size(rehearsal.device_memory)}"
    saved = f"{byte_size(rehearsal.checkpoint_bytes)} in {duration(rehearsal.save_seconds)}"
    disk = f"{byte_size(rehearsal.forecast_disk_bytes)} of {byte_size(rehearsal.disk_free)} free"
    return [
        ("measured memory per rank", memory),
        ("measured speed", f"{count(rehearsal.tokens_per_second)} tokens/s"),
        ("measured checkpoint", saved),
        *((f"resumed at {resumed.layout}", _same(resumed.ok, resumed.difference)) for resumed in rehearsal.resumes),
        ("forecast time", duration(rehearsal.forecast_seconds)),
        ("forecast disk", disk),
    ]


def _same(ok: bool, difference: float) -> str:
    return f"{'same losses' if ok else 'OTHER LOSSES'} (largest difference {difference:.2g})"


def print_plan(plan: RunPlan) -> None:
    """Print the table on standard output, with what a rehearsal of this plan found, and the warnings on standard error."""
    from medsft.cli import console
    from medsft.core.forecast import forecast
    from medsft.core.rehearsal import read_rehearsal

    rehearsal = read_rehearsal(plan)
    rows = [*plan_rows(plan), ("estimated time", _time(forecast(plan)))]
    console.print_table(("", ""), rows + (rehearsal_rows(rehearsal) if rehearsal else []))
    for warning in plan.warnings:
        console.note(f"warning: {warning}")
