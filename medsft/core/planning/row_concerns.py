"""What a plan says about the rows it would train on: all that can be used, and that a person may not have meant."""

from __future__ import annotations

from dataclasses import replace

from medsft.core.data.dataset.findings import overlap, overlap_sentence
from medsft.core.planning.plan import RunPlan
from medsft.core.planning.sets import PlannedSet
from medsft.core.units import count

_LOOKED_AT = 20_000
"""Iterations of a run whose documents are looked at one batch after the other."""


def row_concerns(train: PlannedSet, val: PlannedSet | None, plan: RunPlan) -> list[str]:
    """Return a sentence for each thing that is worth knowing before the rows are trained on."""
    lines = list(train.remarks)
    if val is not None:
        lines += val.remarks
        if val.hashes is not None:
            lines += overlap_sentence(overlap(train.hashes, val.hashes), len(val.hashes))
    return lines + (_empty_iterations(train, plan) if plan.config.loss_mask == 0 else [])


def _empty_iterations(train: PlannedSet, plan: RunPlan) -> list[str]:
    """Say how many iterations would take documents of which not one has an answer left: nothing is trained in them."""
    supervised = train.subset.supervised
    if not train.exact or supervised.all():
        return []
    order, looked_at = replace(train.order, global_batch=plan.global_batch), min(plan.num_iterations, _LOOKED_AT)
    empty = sum(not supervised[order.batch(iteration)].any() for iteration in range(looked_at))
    if not empty:
        return []
    what = f"In {count(empty)} of the first {count(looked_at)} iterations no document has an answer token to train on"
    return [f"{what}: their loss is 0. Use --truncate drop, or a larger --seq or --global_batch."]
