"""A plan as a table for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medsft.core.units import byte_size, count, short_count

if TYPE_CHECKING:
    from medsft.core.planning.plan import DataPlan, RunPlan


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
        ("new tokens", ", ".join(plan.base.new_tokens) or "none"),
        ("training set", _data(plan.train)),
        ("validation set", _data(plan.val) if plan.val else "none"),
        ("iterations", f"{count(plan.num_iterations)} of {plan.config.global_batch} documents ({plan.epochs:.2f} epochs)"),
        ("supervised tokens", short_count(supervised) if supervised else ""),
        ("layout", f"{plan.layout}: {plan.nproc_per_node} process{'es' if plan.nproc_per_node > 1 else ''}{nodes}"),
        ("micro-batches", f"{plan.num_micro_batches} of about {plan.micro_batch} documents, on each rank and iteration"),
        ("precision", plan.precision),
        ("device", f"{estimates.device_name} ({estimates.device_kind})"),
        ("memory per rank", f"{byte_size(memory.total)} of {byte_size(estimates.device_memory)}: {fits}"),
        ("", ", ".join(f"{part} {byte_size(getattr(memory, part))}" for part in parts)),
        ("checkpoint", byte_size(estimates.checkpoint_bytes)),
        ("disk", f"{byte_size(estimates.disk_needed)} needed, {byte_size(estimates.disk_free)} free"),
        ("finished model", plan.export_dir),
    ]
    return [(what, value) for what, value in rows if value]


def _data(data: DataPlan) -> str:
    left_out = f", {count(data.left_out)} left out" if data.left_out else ""
    return f"{count(data.documents)} documents, {short_count(data.tokens)} tokens{left_out} (longest {count(data.longest)})"


def print_plan(plan: RunPlan) -> None:
    """Print the table on standard output and the warnings on standard error."""
    from medsft.cli import console

    console.print_table(("", ""), plan_rows(plan))
    for warning in plan.warnings:
        console.note(f"warning: {warning}")
