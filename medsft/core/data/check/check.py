"""Looks at rows before anything is trained on them: repeats, overlap, contradictions, languages, odd answers, identifiers.

    --val, --against --scan--> n-grams --index--> FILE... --scan, in all cores--> arrays --judge--> CheckReport

Of each row some 60 bytes stay in memory (hashes, lengths, flags), and 280 in temporary files without a name. Text stays in the
process that reads it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from medsft.core.data.check import libraries
from medsft.core.data.check.judge import Columns, judge
from medsft.core.data.check.near import NearRepeats
from medsft.core.data.check.overlap import References, Shared
from medsft.core.data.check.report import CheckReport, Places
from medsft.core.data.check.scan import Scan, ScanItem, Scanned
from medsft.core.data.dataset.pool import mapping
from medsft.core.data.dataset.workers import read_chunks
from medsft.core.data.dataset.write import ProgressCallback, ProgressReporter, input_bytes
from medsft.core.data.sources.bad_rows import BadRows
from medsft.core.data.sources.open import open_rows, refuse_unreadable
from medsft.core.data.sources.row_format import RowFormat, RowFormats, distinct_formats, format_of

_QUICK_BYTES = 8 * 2**20
"""Read of each file by a quick look, spread over it"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRequest:
    """Which rows are looked at, and what they are compared with."""

    files: tuple[Path, ...]
    rows: RowFormats
    """One format for all, or one for each of `files` and then of `val`; others are read by any of these, else as they are"""
    val: tuple[Path, ...] = ()
    against: tuple[Path, ...] = ()
    ngram: int = 8
    """Words in a run, for overlap"""


def check_rows(request: CheckRequest, *, workers: int | None = None, progress: ProgressCallback | None = None) -> CheckReport:
    """Look at every row of the files. `workers` are processes; None: one for each core.

    Without the libraries of the extra `check` near repeats and languages are not looked for; the report says so. Raises
    DataError for a file that cannot be read, LaunchError when a worker dies.
    """
    everything = (*request.val, *request.against, *request.files)
    refuse_unreadable(everything)
    reporter = ProgressReporter("check", input_bytes(everything), progress or (lambda _: None))
    scan = Scan(ngram=request.ngram, near=libraries.has_minhash(), languages=libraries.has_languages())
    with ExitStack() as stack:
        compared: dict[str, Places] = {}
        indexes, before = [], 0
        own, every = _formats(request), distinct_formats(request.rows)
        of_val, of_others = own[len(request.files) :], [every] * len(request.against)
        for flag, files, formats in (("--val", request.val, of_val), ("--against", request.against, of_others)):
            if files:
                references, places = collect_references(scan, files, formats, workers, reporter, before)
                indexes.append(stack.enter_context(references.index()))
                compared[flag] = places
                before += input_bytes(files)
        scan = replace(scan, indexes=tuple(indexes))
        near = stack.enter_context(NearRepeats()) if scan.near else None
        collected = _Collected(Places(sources=[open_rows(path) for path in request.files]))
        process = stack.enter_context(mapping(scan, input_bytes=input_bytes(request.files), workers=workers))
        for scanned in process(_items(request.files, own)):
            collected.add(scanned, near)
            reporter.tell(before + scanned.bytes_read, collected.places.total)
        return judge(
            collected.columns(), near.earlier() if near else None, list(compared.items()), languages_told=scan.languages
        )


def quick_check(request: CheckRequest, *, seconds: float) -> CheckReport:
    """Look at a part of the rows, in this process, for about so many seconds at most: what shows in a row alone.

    Blocks are taken from the whole of each file. Repeats, overlap and languages are not looked for.
    """
    refuse_unreadable(request.files)
    work = Scan(ngram=request.ngram, near=False, languages=False).open()
    collected, until = _Collected(Places(sources=[open_rows(path) for path in request.files])), time.monotonic() + seconds
    for item in _items(request.files, _formats(request), most_bytes=_QUICK_BYTES, until=until):
        collected.add(work(item), None)
    return judge(collected.columns(), None, [], languages_told=False)


def _formats(request: CheckRequest) -> list[tuple[RowFormat, ...]]:
    """Return how each file is read, and then each of `--val`."""
    return [(format_of(request.rows, number),) for number in range(len(request.files) + len(request.val))]


def _items(
    files: Sequence[Path],
    formats: Sequence[tuple[RowFormat, ...]],
    *,
    most_bytes: int | None = None,
    until: float = math.inf,
) -> Iterator[ScanItem]:
    """Yield the blocks of all files, each with its formats.

    With `most_bytes` only some of a large file, and none after `until` (monotonic time).
    """
    before = 0
    for number, path in enumerate(files):
        step = 1 if most_bytes is None else max(1, math.ceil(path.stat().st_size / most_bytes))
        read = 0
        for place, chunk in enumerate(read_chunks([path], encode=False)):
            if time.monotonic() > until:
                return
            read = chunk.bytes_read
            if place % step == 0:
                yield ScanItem(replace(chunk, bytes_read=before + read), number, formats[number])
        before += read


def collect_references(
    scan: Scan,
    files: Sequence[Path],
    formats: Sequence[tuple[RowFormat, ...]],
    workers: int | None,
    reporter: ProgressReporter,
    before: int,
) -> tuple[References, Places]:
    """Return the n-grams of files that others are compared with, and where their rows stand.

    Rows of a file are read by the first of its formats that can.
    """
    references, places = References(), Places(sources=[open_rows(path) for path in files])
    with mapping(scan, input_bytes=input_bytes(files), workers=workers) as process:
        for scanned in process(replace(item, reference=True) for item in _items(files, formats)):
            assert scanned.grams is not None
            assert scanned.begins is not None
            references.add(scanned.grams, scanned.begins, scanned.exact)
            places.add(scanned.file, scanned.numbers)
            reporter.tell(before + scanned.bytes_read, places.total)
    return references, places


@dataclass(slots=True)
class _Collected:
    """What is kept of all rows."""

    places: Places
    bad: BadRows = field(default_factory=BadRows)
    blocks: list[Scanned] = field(default_factory=list)
    """Without their band keys and low bytes"""
    shared: list[list[Shared]] = field(default_factory=list)
    """Of each index: what each block has in common with it, with row numbers over all files"""

    def add(self, scanned: Scanned, near: NearRepeats | None) -> None:
        """Take the rows of a further block."""
        if near is not None:
            near.add(scanned.bands, scanned.low)
        first = self.places.total
        self.places.add(scanned.file, scanned.numbers)
        self.bad.merge(scanned.bad)
        self.shared = self.shared or [[] for _ in scanned.shared]
        for kept, shared in zip(self.shared, scanned.shared, strict=True):
            kept.append(Shared(shared.rows + first, shared.reference))
        self.blocks.append(replace(scanned, bands=scanned.bands[:0], low=scanned.low[:0], shared=()))

    def columns(self) -> Columns:
        """Return the columns of all rows."""
        joined = {
            name: np.concatenate([getattr(block, name) for block in self.blocks])
            for name in ("flags", "exact", "question", "answer", "ending", "lengths", "language")
            if self.blocks
        }
        return Columns(places=self.places, bad=self.bad, shared=self.shared, **joined)
