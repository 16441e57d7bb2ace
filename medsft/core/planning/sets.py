"""The sets of documents as a plan sees them: really tokenized, or guessed from the JSONL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medsft.core.config.run_config import RunConfig
from medsft.core.data.dataset.dataset import is_validation_folder, open_tokenized, set_exists, validation_folder_of
from medsft.core.data.dataset.findings import Survey, given_twice, survey
from medsft.core.data.dataset.subset import Subset, cut_sentence
from medsft.core.data.dataset.write import refuse_rows
from medsft.core.data.sources.columns import Keys
from medsft.core.data.sources.open import open_rows, refuse_unreadable
from medsft.core.data.sources.row_format import RowFormat
from medsft.core.planning.order import SampleOrder
from medsft.core.planning.plan import DatasetStats, absolute
from medsft.core.planning.selection import (
    Split,
    order_of,
    select_training,
    select_validation,
    withheld_parts,
    withheld_validation,
)
from medsft.core.units import count
from medsft.errors import ConfigError, DataError, Problem

_BYTES_PER_TOKEN = 4.0
"""Of English text, for estimates before anything is tokenized."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSet:
    """A set as a plan sees it."""

    stats: DatasetStats
    subset: Subset
    order: SampleOrder
    withheld: int
    """Documents beside these that the original's split takes from training."""
    exact: bool
    """Whether documents were counted in a tokenized set, not estimated."""
    hashes: np.ndarray | None
    """uint64: a number for the texts of each row; of the first rows in an estimate, None for a set without."""
    remarks: tuple[str, ...]
    """What a person should know of the rows, though they can be used."""
    notes: tuple[str, ...] = ()
    """What a person should know about its documents."""


def row_format_of(config: RunConfig) -> RowFormat:
    """Return how the rows of a run are read."""
    return RowFormat(keys=Keys(question=config.question_key, answer=config.answer_key, system=config.system_key))


def training_folder(config: RunConfig) -> Path:
    """Return where the tokenized training set of a run lies."""
    return Path(config.tokenized_data_dir) / config.run_name


def validation_folder(config: RunConfig) -> Path:
    """Return where the tokenized validation set of a run lies, when it has one."""
    return validation_folder_of(training_folder(config))


def list_sets(folder: Path) -> tuple[str, ...]:
    """Return the names of the tokenized training sets in a folder, which need not exist."""
    if not folder.is_dir():
        return ()
    return tuple(sorted(path.name for path in folder.iterdir() if not is_validation_folder(path) and set_exists(path)))


def training_set(config: RunConfig) -> PlannedSet:
    """Return the tokenized training set. Raises `DataError` when it is missing, damaged, or would be truncated."""
    return _training_set(config, has_validation=set_exists(validation_folder(config)))


def _training_set(config: RunConfig, *, has_validation: bool) -> PlannedSet:
    data = open_tokenized(training_folder(config))
    return _planned(select_training(config, data, has_validation=has_validation), config, "--data")


def validation_set(config: RunConfig) -> PlannedSet | None:
    """Return what the run validates on, or None when there is nothing. Raises `DataError` as `training_set` does."""
    if set_exists(validation_folder(config)):
        return _planned(select_validation(config, open_tokenized(validation_folder(config))), config, "--val")
    if config.val or not set_exists(training_folder(config)):  # not tokenized yet
        return None
    withheld = withheld_validation(config, open_tokenized(training_folder(config)))
    return replace(_planned(withheld, config, "--data"), remarks=()) if withheld else None


def training_set_or_guess(config: RunConfig) -> PlannedSet:
    """Return the training set, guessed from the JSONL while it is not tokenized.

    Raises `DataError` as `training_set` does and for rows and files that tokenizing would refuse, as far as the first rows
    show; `ConfigError` when there is nothing to look at.
    """
    has_validation = bool(config.val or (config.run_name and set_exists(validation_folder(config))))
    makes_anew = config.retokenize and config.data
    if config.run_name and set_exists(training_folder(config)) and not makes_anew:
        _refuse_stale(config, training_folder(config), config.data, "--data")
        return _training_set(config, has_validation=has_validation)
    if not config.data:
        raise ConfigError([Problem("--data", "JSONL files are needed", _instead_of_files(config))])
    return _guess(config, config.data, training_folder(config), "--data", has_validation=has_validation)


def _instead_of_files(config: RunConfig) -> str:
    """Return which tokenized set could be used without files, or that there is none."""
    if config.run_name:
        return f"There is no tokenized set in {training_folder(config)}."
    folder = Path(config.tokenized_data_dir)
    return f"Or take a tokenized set of {folder}: give its name with --run_name." if list_sets(folder) else ""


def validation_set_or_guess(config: RunConfig) -> PlannedSet | None:
    """Return the validation set, guessed from the JSONL while it is not tokenized; None where there is none.

    Raises `DataError` as `training_set_or_guess` does.
    """
    tokenized = config.run_name and set_exists(validation_folder(config)) and not config.retokenize
    if tokenized:
        _refuse_stale(config, validation_folder(config), config.val, "--val")
    if tokenized or not config.val:
        return validation_set(config) if config.run_name else None
    return _guess(config, config.val, validation_folder(config), "--val", has_validation=True)


def _planned(split: Split, config: RunConfig, flag: str) -> PlannedSet:
    data, subset = split.data, split.subset
    return PlannedSet(
        stats=_stats(data.folder, data.fingerprint, subset),
        subset=subset,
        order=split.order,
        withheld=split.withheld,
        exact=True,
        hashes=None if data.row_hashes is None else data.row_hashes[subset.indices],
        notes=data.manifest.notes,
        remarks=(*data.manifest.remarks(flag), *cut_sentence(data, subset, config.seq, flag)),
    )


def _stats(folder: Path, fingerprint: str, subset: Subset) -> DatasetStats:
    return DatasetStats(
        folder=absolute(folder),
        fingerprint=fingerprint,
        documents=len(subset),
        left_out=subset.left_out,
        tokens=int(subset.lengths.sum()),
        labels=int(subset.num_labels.sum()),
        supervised_tokens=int(subset.answer_labels.sum()),
        longest=int(subset.lengths.max()),
    )


def _guess(config: RunConfig, files: Sequence[Path], folder: Path, flag: str, *, has_validation: bool) -> PlannedSet:
    """Count rows, and take bytes for tokens at a usual rate. Good enough to plan a form by, never to start from.

    The first rows of each file are read as tokenizing reads them, so that a plan refuses what tokenizing would refuse.
    """
    seen = survey(files, row_format_of(config))
    refuse_rows(seen.bad, seen.tally, files, config.bad_rows, then="as the first rows of the files show")
    if seen.complete:  # else a later row may have it
        seen.tally.refuse_unknown_system_key()
    sizes = np.concatenate([open_rows(path).estimate() for path in files])
    usable = round(len(sizes) * seen.tally.rows / (seen.tally.rows + seen.bad.total))
    sizes = sizes[: max(1, usable)]
    lengths = np.clip((sizes / _BYTES_PER_TOKEN).astype(np.int64), 2, config.seq) + 1
    estimated = Subset(indices=np.arange(len(lengths)), lengths=lengths, answer_labels=np.zeros_like(lengths))
    if parts := withheld_parts(config, len(lengths), has_validation=has_validation):
        estimated = estimated.at(parts[0])
    return PlannedSet(
        stats=_stats(folder, "", estimated),
        subset=estimated,
        order=order_of(config, len(estimated)),
        withheld=len(sizes) - len(estimated),
        exact=False,
        hashes=seen.tally.hashes(),
        remarks=tuple(_first_rows(seen, files, flag)),
    )


def _refuse_stale(config: RunConfig, folder: Path, files: Sequence[Path], flag: str) -> None:
    """Raise `DataError` for a set that tokenizing would refuse, as far as keys and sizes show without reading the files."""
    refuse_unreadable(files)
    recipe = open_tokenized(folder).manifest.recipe
    if not files or (recipe is None and config.trust_cache):
        return
    wanted = row_format_of(config)
    sizes = [path.stat().st_size for path in files]
    if recipe is None or recipe.rows != wanted or [file.bytes for file in recipe.inputs] != sizes:
        raise DataError(
            f"{flag}: the tokenized set in {folder} was made of other files or keys than these",
            hint="tokenize again with --retokenize, or choose another --run_name",
        )


def _first_rows(seen: Survey, files: Sequence[Path], flag: str) -> list[str]:
    rows = seen.tally.rows + seen.bad.total
    lines = seen.tally.findings().sentences(flag, first_rows=not seen.complete)
    if seen.bad.total:
        lines.append(f"{flag}: {count(seen.bad.total)} of the first {count(rows)} rows cannot be used and will be skipped.")
    return lines + given_twice([str(path) for path in files], [path.resolve() for path in files], flag)
