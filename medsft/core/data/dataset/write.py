"""Make a tokenized set: check every row, tokenize into a folder aside, sync, rename.

    OUT_DIR/.NAME.making-XXXX/NAME/...   --rename-->   OUT_DIR/NAME/

The rename is the only moment at which a set begins to exist, so a process that is killed leaves at most a hidden folder,
which the next one removes.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from medsft.core.config.row_options import TEXT
from medsft.core.data.dataset.answers import count_by_role, counts_of, find_answers, joined
from medsft.core.data.dataset.dataset import (
    answers_path,
    groups_path,
    hashes_path,
    role_prefix,
    save_array,
    text_prefix,
)
from medsft.core.data.dataset.findings import Tally
from medsft.core.data.dataset.indexed import IndexedWriter, bin_path, idx_path, token_dtype
from medsft.core.data.dataset.manifest import MANIFEST_NAME, Manifest, write_manifest
from medsft.core.data.dataset.spec import TokenizeSpec
from medsft.core.data.dataset.workers import Process, processing, read_chunks
from medsft.core.data.sources.bad_rows import BadRows
from medsft.core.data.sources.open import no_rows
from medsft.core.data.sources.row_format import distinct_formats
from medsft.core.data.tokenizers.base import OpenedTokenizer
from medsft.core.data.tokenizers.template import Role
from medsft.core.disk import writing_to
from medsft.core.files import sync_entry, sync_tree
from medsft.errors import DataError, ExitCode

Stage = Literal["wait", "hash", "check", "tokenize"]
_SECONDS_BETWEEN_REPORTS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a stage is."""

    stage: Stage
    done_bytes: int
    total_bytes: int
    """Of the input files as they are on disk"""
    documents: int
    seconds: float
    """Since the stage began"""

    @property
    def documents_per_second(self) -> float:
        """Mean rate of this stage."""
        return self.documents / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """By the bytes left at the rate so far; None before the first ones."""
        if not self.done_bytes:
            return None
        return self.seconds * max(0, self.total_bytes - self.done_bytes) / self.done_bytes


ProgressCallback = Callable[[Progress], None]


class ProgressReporter:
    """Reports one stage, not more often than a screen needs."""

    def __init__(self, stage: Stage, total_bytes: int, report: ProgressCallback) -> None:
        self._stage, self._total, self._report = stage, total_bytes, report
        self._began = time.monotonic()
        self._told = 0.0

    def tell(self, done_bytes: int, documents: int = 0) -> None:
        """Say how far the stage is."""
        now = time.monotonic()
        if now - self._told < _SECONDS_BETWEEN_REPORTS and done_bytes < self._total:
            return
        self._told = now
        self._report(
            Progress(
                stage=self._stage,
                done_bytes=done_bytes,
                total_bytes=self._total,
                documents=documents,
                seconds=now - self._began,
            )
        )


def make_set(
    folder: Path,
    spec: TokenizeSpec,
    opened: OpenedTokenizer,
    *,
    workers: int | None,
    document_index: bool,
    report: ProgressCallback,
) -> None:
    """Make the set `folder` as a resolved spec says, in the place of one that is there.

    Raises DataError and then leaves what was there. The caller holds the set's lock.
    """
    files = spec.data
    if any(rows.name == TEXT for rows in distinct_formats(spec.rows)):
        _ = opened.tokenizer.frame  # one that has none is to blame, and not each row
    total = input_bytes(files)
    stamps = [_stamp(path) for path in files]
    with processing(spec, opened, input_bytes=total, workers=workers) as process:
        bad, tally = _check(process, spec, ProgressReporter("check", total, report))
        with _writing_to_disk(folder), _folder_aside(folder) as aside:
            written = _write(aside, files, process, opened, ProgressReporter("tokenize", total, report), document_index)
            if stamps != [_stamp(path) for path in files] or total != sum(file.bytes for file in spec.inputs):
                raise DataError("a data file changed while it was read", hint="try again when it is finished")
            save_array(hashes_path(aside), tally.hashes())
            if (groups := tally.group_hashes()) is not None:
                save_array(groups_path(aside), groups)
            write_manifest(aside, written.manifest(spec, opened, bad, tally))
            _put_in_place(aside, folder)


def input_bytes(files: Sequence[Path]) -> int:
    """Size of all files; one that is missing counts nothing here and is an error where it is read."""
    return sum(path.stat().st_size for path in files if path.is_file())


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:  # it was there a moment ago: whoever reads it next says that it is gone
        return None
    return status.st_size, status.st_mtime_ns


def _check(process: Process, spec: TokenizeSpec, reporter: ProgressReporter) -> tuple[BadRows, Tally]:
    """Read every row once before the slow part, so that the last row of a large file is not refused after an hour."""
    bad, tally = BadRows(), Tally()
    for result in process(read_chunks(spec.data, encode=False)):
        bad.merge(result.bad)
        tally.merge(result.tally)
        reporter.tell(result.bytes_read, tally.rows)
    refuse_rows(bad, tally, spec.data, spec.bad_rows)
    tally.refuse_unknown_keys()
    return bad, tally


def refuse_rows(
    bad: BadRows, tally: Tally, files: Sequence[Path], bad_rows: str, *, then: str = "so nothing was written"
) -> None:
    """Raise DataError when there are bad rows under `--bad_rows error`, or no others."""
    if bad.total and (bad_rows == "error" or not tally.rows):
        raise bad.error(then=then)
    if not tally.rows:
        raise no_rows(files)


@dataclass(frozen=True, slots=True, kw_only=True)
class _WrittenSet:
    """What is known once the files of a set are on disk."""

    documents: int
    input_documents: tuple[int, ...]
    tokens: int
    tokens_by_role: npt.NDArray[np.int64]
    special_in_text: int
    rewritten: int
    unknown: int
    text_bytes: int
    text_sha256: str
    role_bytes: int
    role_sha256: str

    def manifest(self, spec: TokenizeSpec, opened: OpenedTokenizer, bad: BadRows, tally: Tally) -> Manifest:
        return Manifest(
            recipe=spec,
            documents=self.documents,
            input_documents=self.input_documents,
            tokens=self.tokens,
            tokens_by_role=counts_of(self.tokens_by_role),
            vocab_size=opened.tokenizer.vocab_size,
            stop_id=opened.stop_id,
            special_in_text=self.special_in_text,
            rewritten=self.rewritten,
            unknown=self.unknown,
            bad_rows=dict(bad.reasons),
            notes=opened.template.notes,
            findings=tally.findings(),
            text_bytes=self.text_bytes,
            text_sha256=self.text_sha256,
            role_bytes=self.role_bytes,
            role_sha256=self.role_sha256,
        )


def _write(
    aside: Path,
    files: Sequence[Path],
    process: Process,
    opened: OpenedTokenizer,
    reporter: ProgressReporter,
    document_index: bool,
) -> _WrittenSet:
    answers, counts, special, rewritten, unknown, documents = [], np.zeros(len(Role), np.int64), 0, 0, 0, 0
    of_file = np.zeros(len(files), np.int64)
    dtype = token_dtype(opened.tokenizer.vocab_size)
    with (
        IndexedWriter(text_prefix(aside), dtype, document_index=document_index) as text,
        IndexedWriter(role_prefix(aside), np.uint16, document_index=document_index) as role,
    ):
        for result in process(read_chunks(files, encode=True)):
            encoded = result.documents
            assert encoded is not None
            text.add(encoded.tokens, encoded.sizes)
            role.add(encoded.roles, encoded.sizes)
            stops = encoded.tokens == opened.stop_id
            answers.append(find_answers(encoded.roles, encoded.sizes, stops=stops, first_document=documents))
            counts += count_by_role(encoded.roles)
            special += encoded.special_in_text
            rewritten += encoded.rewritten
            unknown += encoded.unknown
            documents += len(encoded.sizes)
            of_file[result.file] += len(encoded.sizes)
            reporter.tell(result.bytes_read, documents)
        wrote_text, wrote_role = text.close(), role.close()
    save_array(answers_path(aside), joined(answers).columns())
    return _WrittenSet(
        documents=documents,
        input_documents=tuple(of_file.tolist()),
        tokens=wrote_text.numbers,
        tokens_by_role=counts,
        special_in_text=special,
        rewritten=rewritten,
        unknown=unknown,
        text_bytes=bin_path(text_prefix(aside)).stat().st_size,
        text_sha256=wrote_text.sha256,
        role_bytes=bin_path(role_prefix(aside)).stat().st_size,
        role_sha256=wrote_role.sha256,
    )


# --- the folder ----------------------------------------------------------------------------------------------------


@contextmanager
def _writing_to_disk(folder: Path) -> Iterator[None]:
    """A full or read-only disk is a person's problem, not a bug."""
    try:
        with writing_to(folder, ExitCode.DATA):
            yield
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written: {error.strerror or error}",
            hint="free some space, or choose another --tokenized_data_dir",
        ) from None


@contextmanager
def _folder_aside(folder: Path) -> Iterator[Path]:
    """An empty folder with the name of the set, in a hidden one beside it; what is left there at the end goes."""
    hidden = Path(tempfile.mkdtemp(prefix=f".{folder.name}.making-", dir=folder.parent))
    try:
        aside = hidden / folder.name
        aside.mkdir()
        yield aside
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _put_in_place(aside: Path, folder: Path) -> None:
    """Rename, after moving away a set that is to be replaced. Between the two there is no set, never half of one."""
    if folder.exists():
        folder.rename(aside.with_name(f"{folder.name}-replaced"))
    sync_tree(aside)
    aside.rename(folder)
    sync_entry(folder.parent)


def remove_left_overs(folder: Path) -> None:
    """Remove what a killed process left beside the set. The caller holds the set's lock."""
    for hidden in folder.parent.glob(f".{folder.name}.making-*"):
        shutil.rmtree(hidden, ignore_errors=True)


def refuse_foreign_files(folder: Path) -> None:
    """A folder is replaced as a whole, so raise DataError if it holds anything but a set."""
    if not folder.is_dir():
        return
    own = {MANIFEST_NAME, answers_path(folder).name, hashes_path(folder).name, groups_path(folder).name}
    own |= {path(prefix(folder)).name for path in (bin_path, idx_path) for prefix in (text_prefix, role_prefix)}
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in own)
    if foreign:
        raise DataError(
            f"{folder} also holds files that are not of a tokenized set: {', '.join(foreign[:5])}",
            hint="move them away, or choose another --run_name",
        )
