"""How long a run will take, before it starts: by a rehearsal of it, else by the speed of an earlier run like it.

An estimate, and each says what it is made from. The command line and the wizard show the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median

from medsft.core.planning.plan import RunPlan
from medsft.core.rehearsal import FORWARD_SHARE, read_rehearsal
from medsft.core.run.launch import load_plan
from medsft.core.run.listing import list_runs, look
from medsft.core.run.rundir import RunDir
from medsft.core.units import count
from medsft.errors import MedsftError

_SPEED_STEPS = 50
"""So many of an earlier run's latest iterations are looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """How long a run will take."""

    seconds: float
    """From the first iteration to the finished model; by an earlier run's speed, to the last iteration."""
    basis: str
    """What that is made from, in words that follow `about 3 h, `."""


def forecast(plan: RunPlan) -> Forecast | None:
    """Return how long the run of a plan will take, None where nothing like it has run yet."""
    rehearsal = read_rehearsal(plan)
    if rehearsal is not None:
        return Forecast(seconds=rehearsal.forecast_seconds, basis="as its rehearsal measured")
    try:
        runs = list_runs(Path(plan.run_dir).parent)
    except MedsftError:
        return None
    for run in runs:
        speed = _speed(run, plan)
        if speed is not None:
            return Forecast(seconds=_work(plan) / speed, basis=f"at the {count(speed)} tokens/s of {run.path.name}")
    return None


def _work(plan: RunPlan) -> float:
    """Return the tokens to train on, and those to validate on and of benchmarks by what they cost."""
    once = (plan.val.labels if plan.val else 0) + sum(task.tokens for task in plan.tasks)
    return plan.train.labels * plan.epochs + FORWARD_SHARE * once * plan.num_validations


def _speed(run: RunDir, plan: RunPlan) -> float | None:
    """Return the median tokens per second of a run of the same base model on the same devices and layout, else None."""
    try:
        other = load_plan(run)
    except MedsftError:
        return None
    if _kind(other) != _kind(plan):
        return None
    steps = look(run).view.series.get("tokens_per_second", ())[-_SPEED_STEPS:]
    speeds = [speed for speed in steps if speed > 0]
    return median(speeds) if speeds else None


def _kind(plan: RunPlan) -> tuple[object, ...]:
    """Return what the speed of a run depends on most."""
    device = (plan.estimates.device_kind, plan.estimates.device_name)
    adapter = plan.adapter and (plan.adapter.lora.rank, plan.adapter.lora.targets, plan.adapter.base_precision)
    kept = (plan.precision, plan.config.optimizer, plan.recompute)
    return (plan.base.fingerprint, plan.layout, kept, adapter, device)
