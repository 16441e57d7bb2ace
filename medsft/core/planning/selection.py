"""Which documents a run trains on and validates on, and in which order: the one place that decides it.

    training set ------ --truncate --> documents --> SampleOrder
    validation set ---- --truncate --> documents, all of them in turn

A run without a validation set may give a part of its training set away: the share that `--val` asks for, chosen by the hashes
beside the set, or a part of all documents as the original does (`--compat megatron-llm`). Shares of files are of what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medsft.core.config.run_config import RunConfig
from medsft.core.data.dataset.dataset import TokenizedDataset, open_tokenized
from medsft.core.data.dataset.subset import Reading, Subset, apply_truncation, refuse_unsupervised
from medsft.core.data.sources.row_format import distinct_formats
from medsft.core.planning.mixture import file_shares
from medsft.core.planning.order import FileShare, SampleOrder, hidden_split, split_by_hash
from medsft.core.planning.plan import DatasetStats, RunPlan
from medsft.core.planning.schedule import plan_global_batch
from medsft.errors import DataError, MismatchError


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """What a run trains on, or validates on: documents of a set and their order."""

    data: TokenizedDataset
    subset: Subset
    order: SampleOrder
    """Numbers 0..n-1 mean positions in `subset`."""
    withheld: int = 0
    """Documents of the training set that are validated on, or left out as the original does."""


def select(
    config: RunConfig, train: TokenizedDataset, val: TokenizedDataset | None, *, shares: Sequence[float]
) -> tuple[Split, Split | None]:
    """Return what is trained on, in `shares` of its files, and what is validated on, None for nothing.

    Raises `DataError` when documents do not fit and `--truncate error` is set.
    """
    training = select_training(config, train, has_validation=val is not None, shares=shares)
    return training, select_validation(config, val) if val is not None else withheld_validation(config, train)


def select_training(config: RunConfig, data: TokenizedDataset, *, has_validation: bool, shares: Sequence[float]) -> Split:
    """Return the training half of `select`."""
    used = _fitting(config, data, "--data")
    parts = withheld_parts(config, len(used), has_validation=has_validation, hashes=_hashes(config, data, used.indices))
    if parts is None:
        return _split(config, data, used, "--data", shares=shares)
    train, val, test = parts
    withheld = len(val) + len(test)
    return _split(config, data, used.at(train), "--data", shares=shares, withheld=withheld, drawn_before=len(used))


def select_validation(config: RunConfig, data: TokenizedDataset) -> Split:
    """Return the documents of a validation set."""
    return _split(config, data, _fitting(config, data, "--val"), "--val")


def withheld_validation(config: RunConfig, train: TokenizedDataset) -> Split | None:
    """Return the part of the training set that a run without a validation set validates on."""
    used = _fitting(config, train, "--data")
    parts = withheld_parts(config, len(used), has_validation=False, hashes=_hashes(config, train, used.indices))
    if parts is None or not len(parts[1]):
        return None
    return _split(config, train, used.at(parts[1]), "the part of --data to validate on")


def divided(config: RunConfig, data: TokenizedDataset) -> tuple[int, tuple[FileShare, ...]]:
    """Return what shares make of a whole training set: documents to validate on, and what an epoch takes of each file.

    Raises `DataError` as `select` does, but asks neither lengths nor answers: --truncate decides later.
    """
    every = np.arange(data.num_documents)
    parts = withheld_parts(config, len(every), has_validation=True, hashes=_hashes(config, data, every))
    train, val = (every, every[:0]) if parts is None else parts[:2]
    return len(val), file_shares(config, config.shares, data.manifest.input_documents, train)


def withheld_parts(
    config: RunConfig, num_documents: int, *, has_validation: bool, hashes: npt.NDArray[np.uint64] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return the documents to train on, to validate on and to leave out, each int64; None where nothing is divided.

    `hashes` [num_documents] decide about the share in `--val`; without them, as in an estimate, documents are spread evenly.
    Raises `DataError` when one side of such a division is empty.
    """
    if config.val_share is not None:
        train, val = _by_share(config.val_share, num_documents, hashes)
        if not len(train) or not len(val):
            raise _one_side_only(config, num_documents, hashes, nothing_to_train_on=not len(train))
        return train, val, val[:0]
    if has_validation or not config.rules.withholds_documents:
        return None
    return hidden_split(num_documents, config.seed)


def _by_share(share: float, num_documents: int, hashes: npt.NDArray[np.uint64] | None) -> tuple[np.ndarray, np.ndarray]:
    if hashes is not None:
        return split_by_hash(hashes, share)
    amount = min(max(1, round(share * num_documents)), num_documents - 1)
    val = np.arange(amount) * num_documents // max(1, amount)
    return np.setdiff1d(np.arange(num_documents), val), val


def _one_side_only(
    config: RunConfig, documents: int, hashes: npt.NDArray[np.uint64] | None, *, nothing_to_train_on: bool
) -> DataError:
    groups = f" in {len(np.unique(hashes)):,} groups of --group_key" if config.group_key and hashes is not None else ""
    what = "all" if nothing_to_train_on else "none"
    return DataError(
        f"--val: a share of {config.val_share:g} takes {what} of the {documents:,} documents{groups} to validate on",
        hint=f"give a {'smaller' if nothing_to_train_on else 'larger'} share, or files after --val",
    )


def _hashes(config: RunConfig, data: TokenizedDataset, documents: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64] | None:
    """Return what decides which of some documents `--val SHARE` takes: the hash of the row of each, or of its group.

    None where there is no such share. Raises `DataError` for a set without these hashes.
    """
    if config.val_share is None:
        return None
    recipe = data.manifest.recipe
    groups = set() if recipe is None else {rows.keys.group for rows in distinct_formats(recipe.rows)}
    if config.group_key is not None and groups != {config.group_key}:
        raise DataError(
            f"--group_key: the tokenized set in {data.folder} was made without the groups of `{config.group_key}`",
            hint="tokenize again with --retokenize",
        )
    hashes = data.row_hashes if config.group_key is None else data.group_hashes
    if hashes is None:
        raise DataError(
            f"--val: the tokenized set in {data.folder} has no hashes of its rows by which to choose a share; "
            "an earlier version of medsft or another program made it",
            hint="tokenize again with --retokenize, or give files after --val",
        )
    return hashes[documents]


def order_of(
    config: RunConfig, num_documents: int, *, drawn_before: int = 0, mixture: tuple[FileShare, ...] = ()
) -> SampleOrder:
    """Return the order in which this many documents are trained on."""
    order = SampleOrder(
        num_documents,
        config.global_batch,
        config.seed,
        numpy_legacy=config.rules.numpy_order,
        drawn_before=drawn_before,
        mixture=mixture,
    )
    return replace(order, global_batch=plan_global_batch(config, order.epoch_documents))


def open_splits(plan: RunPlan) -> tuple[Split, Split | None]:
    """Open the sets of a plan and select as it was planned.

    Raises `MismatchError` when a set is not the one that was planned with, `DataError` when it cannot be read.
    """
    has_own_set = plan.val is not None and plan.val.folder != plan.train.folder
    own_set = _open(plan.val) if plan.val is not None and has_own_set else None
    train, val = select(plan.config, _open(plan.train), own_set, shares=plan.train.shares)
    if plan.config.val_share is not None and val is not None and plan.val is not None:
        # The fingerprint of the set does not hold the hashes that choose.
        found = (len(val.subset), int(val.subset.num_labels.sum()))
        if found != (plan.val.documents, plan.val.labels):
            message = f"{plan.train.folder}: the hashes of its rows have changed since the run was planned."
            raise MismatchError(message, hint="Make the set again with --retokenize.")
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
    return apply_truncation(data.outlines, Reading.of(config), flag=flag)


def _split(
    config: RunConfig,
    data: TokenizedDataset,
    subset: Subset,
    flag: str,
    *,
    shares: Sequence[float] = (),
    withheld: int = 0,
    drawn_before: int = 0,
) -> Split:
    refuse_unsupervised(subset, config.seq, flag)
    mixture = file_shares(config, shares, data.manifest.input_documents, subset.indices)
    order = order_of(config, len(subset), drawn_before=drawn_before, mixture=mixture)
    return Split(data=data, subset=subset, order=order, withheld=withheld)
