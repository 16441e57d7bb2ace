"""The sets of documents as a plan sees them: really tokenized, or guessed from the files of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medsft.core.config.row_options import TEXT
from medsft.core.config.run_config import RunConfig
from medsft.core.data.dataset.dataset import is_validation_folder, open_tokenized, set_exists, validation_folder_of
from medsft.core.data.dataset.findings import BYTES_PER_TOKEN, Survey, given_twice, survey
from medsft.core.data.dataset.manifest import read_manifest, turns_differences
from medsft.core.data.dataset.outlines import in_pieces
from medsft.core.data.dataset.subset import Reading, Subset, count_cut, cut_sentence
from medsft.core.data.dataset.write import refuse_rows
from medsft.core.data.sources.open import open_rows, refuse_unreadable
from medsft.core.data.sources.recognize import Recognized, RecognizedFiles, recognize
from medsft.core.data.sources.row_format import format_of
from medsft.core.data.sources.row_keys import differences_from, unused_options
from medsft.core.data.sources.row_looks import RowOptions
from medsft.core.planning.mixture import file_shares, mixture_parts
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


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSet:
    """A set as a plan sees it."""

    stats: DatasetStats
    subset: Subset
    order: SampleOrder
    withheld: int
    """Documents beside these that are validated on, or left out as the original does."""
    exact: bool
    """Whether documents were counted in a tokenized set, not estimated."""
    hashes: np.ndarray | None
    """uint64: a number for the texts of each row; of the first rows in an estimate, None for a set without."""
    remarks: tuple[str, ...]
    """What a person should know of the rows, though they can be used."""
    notes: tuple[str, ...] = ()
    """What a person should know about its documents."""


def recognize_rows(config: RunConfig) -> RecognizedFiles:
    """Return how the rows of `--data` and `--val` are read, by the options and the first rows of each file, and why.

    Raises `DataError` for files that cannot be read and for rows of a file that are not all of one format.
    """
    return recognize(config.data_files, RowOptions.of(config.format, config.row_options), val=config.val_files)


def rows_sentences(config: RunConfig) -> tuple[str, ...]:
    """Return how the rows of a run are read, and why, or how those of its tokenized set were; nothing where neither is known.

    Raises `DataError` as `recognize_rows` does.
    """
    if config.data_files or config.val_files:
        return recognize_rows(config).sentences
    recipe = open_tokenized(training_folder(config)).manifest.recipe if set_exists(training_folder(config)) else None
    if recipe is None:
        return ()
    return RecognizedFiles(
        recipe.data, tuple(Recognized(format_of(recipe.rows, n), "") for n in range(len(recipe.data)))
    ).sentences


def training_folder(config: RunConfig) -> Path:
    """Return where the tokenized training set of a run lies."""
    return Path(config.tokenized_data_dir) / config.run_name


def validation_folder(config: RunConfig) -> Path:
    """Return where the tokenized validation set of a run lies, when it has one."""
    return validation_folder_of(training_folder(config))


def has_validation_set(config: RunConfig) -> bool:
    """Tell whether there is a tokenized set that the run validates on; with a share in `--val` none is looked at."""
    return config.val_share is None and set_exists(validation_folder(config))


def list_sets(folder: Path) -> tuple[str, ...]:
    """Return the names of the tokenized training sets in a folder, which need not exist."""
    if not folder.is_dir():
        return ()
    return tuple(sorted(path.name for path in folder.iterdir() if not is_validation_folder(path) and set_exists(path)))


def training_set(config: RunConfig) -> PlannedSet:
    """Return the tokenized training set. Raises `DataError` when it is missing, damaged, or would be truncated."""
    return _training_set(config, has_validation=has_validation_set(config))


def _training_set(config: RunConfig, *, has_validation: bool) -> PlannedSet:
    data = open_tokenized(training_folder(config))
    split = select_training(config, data, has_validation=has_validation, shares=config.shares)
    return _planned(split, config, "--data")


def validation_set(config: RunConfig) -> PlannedSet | None:
    """Return what the run validates on, or None when there is nothing. Raises `DataError` as `training_set` does."""
    if has_validation_set(config):
        return _planned(select_validation(config, open_tokenized(validation_folder(config))), config, "--val")
    if config.val_files or not set_exists(training_folder(config)):  # not tokenized yet
        return None
    withheld = withheld_validation(config, open_tokenized(training_folder(config)))
    return replace(_planned(withheld, config, "--data"), remarks=()) if withheld else None


def training_set_or_guess(config: RunConfig) -> PlannedSet:
    """Return the training set, guessed from the files of rows while it is not tokenized.

    Raises `DataError` as `training_set` does and for rows and files that tokenizing would refuse, as far as the first rows
    show; `ConfigError` when there is nothing to look at.
    """
    has_validation = bool(config.val_files or (config.run_name and has_validation_set(config)))
    if _training_is_tokenized(config):
        _refuse_stale(config, training_folder(config), config.data_files, "--data")
        return _training_set(config, has_validation=has_validation)
    if not config.data:
        raise ConfigError([Problem("--data", "files of rows are needed", _instead_of_files(config))])
    return _guess(config, config.data_files, training_folder(config), "--data", has_validation=has_validation)


def _training_is_tokenized(config: RunConfig) -> bool:
    """Tell whether there is a training set that a run would not make anew."""
    return bool(config.run_name) and set_exists(training_folder(config)) and not (config.retokenize and config.data)


def _instead_of_files(config: RunConfig) -> str:
    """Return which tokenized set could be used without files, or that there is none."""
    if config.run_name:
        return f"There is no tokenized set in {training_folder(config)}."
    folder = Path(config.tokenized_data_dir)
    return f"Or take a tokenized set of {folder}: give its name with --run_name." if list_sets(folder) else ""


def validation_set_or_guess(config: RunConfig) -> PlannedSet | None:
    """Return the validation set, guessed from the files of rows while it is not tokenized; None where there is none.

    Raises `DataError` as `training_set_or_guess` does.
    """
    if config.val_share is not None and config.data and not _training_is_tokenized(config):
        return _guess(config, config.data_files, training_folder(config), "--data", has_validation=False, withheld=True)
    tokenized = config.run_name and has_validation_set(config) and not config.retokenize
    if tokenized:
        _refuse_stale(config, validation_folder(config), config.val_files, "--val")
    if tokenized or not config.val_files:
        return validation_set(config) if config.run_name else None
    return _guess(config, config.val_files, validation_folder(config), "--val", has_validation=True)


def _planned(split: Split, config: RunConfig, flag: str) -> PlannedSet:
    data, subset = split.data, split.subset
    pieces = data.outlines.texts[subset.indices]
    fits = np.minimum(data.lengths[subset.indices], config.seq + 1)
    by_turn = int(((subset.lengths < fits) & ~pieces).sum())
    return PlannedSet(
        stats=_stats(config, data.folder, data.fingerprint, subset, split.order, pieces=pieces, cut_by_turn=by_turn),
        subset=subset,
        order=split.order,
        withheld=split.withheld,
        exact=True,
        hashes=None if data.row_hashes is None else data.row_hashes[subset.documents],
        notes=data.manifest.notes,
        remarks=(*data.manifest.remarks(flag), *cut_sentence(data.outlines, subset, Reading.of(config), flag)),
    )


def _stats(
    config: RunConfig,
    folder: Path,
    fingerprint: str,
    subset: Subset,
    order: SampleOrder,
    *,
    pieces: np.ndarray,
    cut_by_turn: int = 0,
) -> DatasetStats:
    """Return the numbers of a plan. `pieces`, bool [positions], tells which positions of the subset belong to texts."""
    mixture = mixture_parts(config.data_files, config.shares, order.mixture, subset) if order.mixture else ()
    return DatasetStats(
        folder=absolute(folder),
        fingerprint=fingerprint,
        documents=order.epoch_documents,
        left_out=subset.left_out,
        tokens=sum(part.tokens for part in mixture) if mixture else int(subset.lengths.sum()),
        labels=sum(part.labels for part in mixture) if mixture else int(subset.num_labels.sum()),
        supervised_tokens=sum(part.supervised_tokens for part in mixture) if mixture else int(subset.answer_labels.sum()),
        longest=int(subset.lengths.max()),
        mixture=mixture,
        cut_by_turn=cut_by_turn,
        texts=len(np.unique(subset.indices[pieces])),
        text_pieces=int(pieces.sum()),
    )


def _guess(
    config: RunConfig, files: Sequence[Path], folder: Path, flag: str, *, has_validation: bool, withheld: bool = False
) -> PlannedSet:
    """Count rows, and take bytes for tokens at a usual rate. Good enough to plan a form by, never to start from.

    The first rows of each file are read as tokenizing reads them, so that a plan refuses what tokenizing would refuse. With
    `withheld` the result is the part of the training set that is validated on.
    """
    rows = recognize_rows(config).rows_of(files)
    seen = survey(files, rows, split=config.turns == "split")
    refuse_rows(seen.bad, seen.tally, files, config.bad_rows, then="as the first rows of the files show")
    if seen.complete:  # else a later row may have it
        seen.tally.refuse_unknown_keys()
    good, looked_at = seen.tally.rows, seen.tally.rows + seen.bad.total
    of_row = max(1, round(len(seen.tally.hashes()) / max(1, good)))  # documents: more than one with --turns split
    of_files = [
        np.repeat(sizes[: -(-len(sizes) * good // looked_at)], of_row)
        for sizes in (open_rows(path).estimate() for path in files)
    ]
    sizes = np.concatenate(of_files)
    texts = np.repeat([format_of(rows, file).name == TEXT for file in range(len(files))], [len(sizes) for sizes in of_files])
    everything = _estimated(sizes, config.seq, texts)
    row_hashes, group_hashes = seen.tally.hashes(), seen.tally.group_hashes()
    hashes = row_hashes if group_hashes is None else group_hashes
    known = hashes[everything.indices] if len(hashes) == len(sizes) else None
    parts = withheld_parts(config, len(everything), has_validation=has_validation, hashes=known)
    estimated = everything if parts is None else everything.at(parts[1 if withheld else 0])
    shares = config.shares if flag == "--data" and not withheld else ()
    mixture = file_shares(config, shares, [len(sizes) for sizes in of_files], estimated.indices)
    order = order_of(config, len(estimated), mixture=mixture)
    return PlannedSet(
        stats=_stats(config, folder, "", estimated, order, pieces=texts[estimated.indices]),
        subset=estimated,
        order=order,
        withheld=0 if withheld else len(everything) - len(estimated),
        exact=False,
        hashes=row_hashes if parts is None else None if known is None else row_hashes[estimated.documents],
        remarks=() if withheld else (*_first_rows(seen, files, flag), *_estimated_cut(seen, config, flag)),
    )


def _estimated(sizes: np.ndarray, seq: int, texts: np.ndarray) -> Subset:
    """Return what rows of these bytes, [n], may become; nobody knows where answers are. `texts`, bool [n]: plain text."""
    tokens = np.maximum((sizes / BYTES_PER_TOKEN).astype(np.int64), 2)
    lengths = np.where(texts, tokens, np.minimum(tokens, seq)) + 1
    pieces = in_pieces(lengths, texts, seq)
    nothing = np.zeros_like(pieces.lengths)
    return Subset(
        indices=pieces.documents, starts=pieces.starts, lengths=pieces.lengths, trained_from=nothing, answer_labels=nothing
    )


def _estimated_cut(seen: Survey, config: RunConfig, flag: str) -> list[str]:
    """Say what the first rows let expect of `--truncate`; nothing where all of them seem to fit."""
    cut = count_cut(seen.outlines, Reading.of(config))
    if not cut.documents:
        return []
    rows = f"the {'' if seen.complete else 'first '}{count(len(seen.outlines))} documents"
    then = {"keep": f"are cut. {cut.in_words}", "drop": "are left out.", "error": "stop the run once they are tokenized."}
    said = f"about {count(cut.documents)} of {rows} are longer than --seq {config.seq} and {then[config.truncate]}"
    return [f"{flag}: by their bytes, before tokenizing, {said}"]


def _refuse_stale(config: RunConfig, folder: Path, files: Sequence[Path], flag: str) -> None:
    """Raise `DataError` for a set that tokenizing would refuse, as far as keys and sizes show without reading the files."""
    refuse_unreadable(files)
    manifest = open_tokenized(folder).manifest
    recipe = manifest.recipe
    if other := turns_differences(manifest, config.turns):
        hint = "tokenize again with --retokenize, or choose another --run_name"
        raise DataError(f"{flag}: the tokenized set in {folder} is another: {other[0]}", hint=hint)
    if not files:
        refuse_other_rows(config)
    if not files or (recipe is None and config.trust_cache):
        return
    wanted = recognize_rows(config).rows_of(files)
    sizes = [path.stat().st_size for path in files]
    if recipe is None or recipe.rows != wanted or [file.bytes for file in recipe.inputs] != sizes:
        raise DataError(
            f"{flag}: the tokenized set in {folder} was made of other files or keys than these",
            hint="tokenize again with --retokenize, or choose another --run_name",
        )


def refuse_other_rows(config: RunConfig) -> None:
    """Raise `DataError` when options say that rows are read otherwise than those of the sets of a run without files.

    Where files of one set are given, options are theirs, and the other set is used as it is.
    """
    if config.data_files or config.val_files:
        return
    folders = {"--data": training_folder(config)}
    if has_validation_set(config):
        folders["--val"] = validation_folder(config)
    wanted = RowOptions.of(config.format, config.row_options)
    manifests = {name: read_manifest(folder) for name, folder in folders.items()}
    recipes = {name: manifest.recipe for name, manifest in manifests.items() if manifest and manifest.recipe}
    changed = {name: differences_from(recipe.rows, wanted) for name, recipe in recipes.items()}
    if len(recipes) == len(folders):  # of the rows of another program's set nothing is known
        changed["--data"] += unused_options([recipe.rows for recipe in recipes.values()], wanted)
    for name, lines in changed.items():
        if lines:
            listed = "\n".join(f"  - {line}" for line in lines)
            raise DataError(
                f"the rows of the tokenized set in {folders[name]} were read otherwise:\n{listed}",
                hint=f"give {name} with --retokenize, or leave these options away",
            )


def _first_rows(seen: Survey, files: Sequence[Path], flag: str) -> list[str]:
    rows = seen.tally.rows + seen.bad.total
    lines = seen.tally.findings().sentences(flag, first_rows=not seen.complete)
    if seen.bad.total:
        lines.append(f"{flag}: {count(seen.bad.total)} of the first {count(rows)} rows cannot be used and will be skipped.")
    return lines + given_twice([str(path) for path in files], [path.resolve() for path in files], flag)
