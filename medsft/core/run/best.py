"""Where the training of a run has ended, and which of its checkpoints is the best, as the checkpoints on the disk say it.

A run that validates keeps, beside the latest checkpoints, the one after which the loss on the validation set was lowest, or the
accuracy in a benchmark highest (`--keep_best`). The manifest of each checkpoint says which that is, so a run that is killed and
resumed keeps the same one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medsft.core.models.run_folder import UNREADABLE_MANIFEST, read_manifest
from medsft.core.planning.plan import RunPlan
from medsft.core.run.rundir import RunDir


def end_of_training(run: RunDir, plan: RunPlan) -> int | None:
    """Return the iteration after which nothing is left to train, None while there is.

    It is the last of the plan, or the one at which as many validations as `--patience` says had brought nothing better.
    """
    saved = run.checkpoints()
    if not saved:
        return None
    patience = plan.config.patience if plan.keeps_best else None
    worn_out = patience is not None and _state(run, plan, saved[-1]).get("validations_since_best", 0) >= patience
    return saved[-1] if saved[-1] >= plan.num_iterations or worn_out else None


def best_checkpoint(run: RunDir, plan: RunPlan) -> int | None:
    """Return the iteration of the best checkpoint that is there, None where none is known, or the run keeps none."""
    whole = run.whole_checkpoints() if plan.keeps_best else []
    best = _state(run, plan, whole[-1]).get("best_iteration", 0) if whole else 0
    return best if best in whole else None


def _state(run: RunDir, plan: RunPlan, iteration: int) -> Mapping[str, Any]:
    """Return the state in a checkpoint's manifest; nothing where that cannot be read, which others say, or where another
    `--keep_best` decided then.
    """
    try:
        state = dict(read_manifest(run.checkpoint_path(iteration))["state"])
    except UNREADABLE_MANIFEST:
        return {}
    return state if state.get("best_by", "loss") == plan.config.keep_best else {}
