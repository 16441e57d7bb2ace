"""Which documents a run trains on and validates on, and in which order: the one place that decides it.

    training set ------ --truncate --> documents --> SampleOrder
    validation set ---- --truncate --> documents, all of them in turn

As the original does (`--compat megatron-llm`), a run without a validation set gives a part of its training set away.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medsft.core.config.run_config import RunConfig
from medsft.core.data.dataset.dataset import TokenizedDataset, open_tokenized
from medsft.core.data.dataset.subset import Subset, apply_truncation, refuse_unsupervised
from medsft.core.planning.order import SampleOrder, hidden_split
from medsft.core.planning.plan import DatasetStats, RunPlan
from medsft.core.planning.schedule import plan_global_batch
from medsft.errors import MismatchError


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """What a run trains on, or validates on: documents of a set and their order."""

    data: TokenizedDataset
    subset: Subset
    order: SampleOrder
    """Numbers 0..n-1 mean positions in `subset`."""
    withheld: int = 0
    """Documents that the original's split takes from training."""


def select(config: RunConfig, train: TokenizedDataset, val: TokenizedDataset | None) -> tuple[Split, Split | None]:
    """Return what is trained on and what is validated on, None for nothing.

    Raises `DataError` when documents do not fit and `--truncate error` is set.
    """
    training = select_training(config, train, has_validation=val is not None)
    return training, select_validation(config, val) if val is not None else withheld_validation(config, train)


def select_training(config: RunConfig, data: TokenizedDataset, *, has_validation: bool) -> Split:
    """Return the training half of `select`."""
    used = _fitting(config, data, "--data")
    parts = withheld_parts(config, len(used), has_validation=has_validation)
    if parts is None:
        return _split(config, data, used, "--data")
    train, val, test = parts
    return _split(config, data, used.at(train), "--data", withheld=len(val) + len(test), drawn_before=len(used))


def select_validation(config: RunConfig, data: TokenizedDataset) -> Split:
    """Return the documents of a validation set."""
    return _split(config, data, _fitting(config, data, "--val"), "--val")


def withheld_validation(config: RunConfig, train: TokenizedDataset) -> Split | None:
    """Return the part of the training set that a run without a validation set validates on."""
    used = _fitting(config, train, "--data")
    parts = withheld_parts(config, len(used), has_validation=False)
    if parts is None or not len(parts[1]):
        return None
    return _split(config, train, used.at(parts[1]), "the part of --data to validate on")


def withheld_parts(
    config: RunConfig, num_documents: int, *, has_validation: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return how the original divides its training set, see `hidden_split`; None where nothing is divided."""
    if has_validation or not config.rules.withholds_documents:
        return None
    return hidden_split(num_documents, config.seed)


def order_of(config: RunConfig, num_documents: int, *, drawn_before: int = 0) -> SampleOrder:
    """Return the order in which this many documents are trained on."""
    return SampleOrder(
        num_documents,
        plan_global_batch(config, num_documents),
        config.seed,
        numpy_legacy=config.rules.numpy_order,
        drawn_before=drawn_before,
    )


def open_splits(plan: RunPlan) -> tuple[Split, Split | None]:
    """Open the sets of a plan and select as it was planned.

    Raises `MismatchError` when a set is not the one that was planned with, `DataError` when it cannot be read.
    """
    has_own_set = plan.val is not None and plan.val.folder != plan.train.folder
    train, val = select(plan.config, _open(plan.train), _open(plan.val) if plan.val is not None and has_own_set else None)
    return _as_planned(train, plan), _as_planned(val, plan) if val is not None else None


def _as_planned(chosen: Split, plan: RunPlan) -> Split:
    """Take the documents of an iteration from the plan: an earlier version may have planned more than the set has."""
    return replace(chosen, order=replace(chosen.order, global_batch=plan.global_batch))


def _open(planned: DatasetStats) -> TokenizedDataset:
    data = open_tokenized(Path(planned.folder))
    if data.fingerprint != planned.fingerprint:
        raise MismatchError(f"{planned.folder} has changed since the run was planned.", hint="Give it another --id.")
    return data


def _fitting(config: RunConfig, data: TokenizedDataset, flag: str) -> Subset:
    return apply_truncation(data, config.seq, config.truncate, loss_mask=config.loss_mask, flag=flag)  # type: ignore[arg-type]


def _split(
    config: RunConfig, data: TokenizedDataset, subset: Subset, flag: str, *, withheld: int = 0, drawn_before: int = 0
) -> Split:
    refuse_unsupervised(subset, config.seq, flag)
    order = order_of(config, len(subset), drawn_before=drawn_before)
    return Split(data=data, subset=subset, order=order, withheld=withheld)
