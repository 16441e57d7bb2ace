"""What a check keeps of each row: hashes, lengths and flags, never text. The work of its processes.

ScanItem (a block of rows) --scan--> Scanned (arrays with an entry for each row)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from medsft.core.data.check import kinds, libraries
from medsft.core.data.check.answers import ends_sentence, is_cut, is_empty, is_refusal
from medsft.core.data.check.identifiers import identifiers
from medsft.core.data.check.near import BANDS, band_keys
from medsft.core.data.check.overlap import ReferenceIndex, Shared
from medsft.core.data.check.words import Hashes, Offsets, WordHashes, mixed, ngrams, text_hash, words_of
from medsft.core.data.dataset.findings import digest
from medsft.core.data.dataset.workers import Chunk
from medsft.core.data.sources.bad_rows import BadRows
from medsft.core.data.sources.base import BadRow, EmptyRow
from medsft.core.data.sources.columns import find, string_names
from medsft.core.data.sources.conversation import Conversation
from medsft.core.data.sources.row_format import RowFormat

_NEAR_WORDS = 3
"""Near repeats are told by their sets of runs of three words."""
_LEAST_NEAR_WORDS = 8
"""A row of fewer words is compared as a whole only: one other word makes it another question."""
NO_QUESTION = 0
"""In place of a question's hash, where a row has none"""
_NOT_NEAR = (np.zeros((0, BANDS), np.uint64), np.zeros((0, libraries.HASHES), np.uint8))
"""In place of band keys and low bytes, where near repeats are not looked for"""


@dataclass(frozen=True, slots=True)
class ScanItem:
    """A block of rows of one of the files."""

    chunk: Chunk
    file: int
    """Which of the files, from 0"""
    rows: tuple[RowFormat, ...]
    """How they are read: by the first of these that can"""
    reference: bool = False
    """These rows are only what others are compared with"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanned:
    """What is kept of the rows of a block, [rows] each unless it says otherwise."""

    file: int
    bytes_read: int
    bad: BadRows
    numbers: npt.NDArray[np.int64]
    flags: npt.NDArray[np.uint32]
    """A bit for each kind of `kinds.BITS`"""
    exact: Hashes
    """Of all texts as they are"""
    question: Hashes
    """Of the words before the last answer; `NO_QUESTION` for rows that have none"""
    answer: Hashes
    """Of the words of the last answer"""
    ending: Hashes
    """Of the three words before the last one of the answer; 0 for a short answer, 1 where it ends with the end of a sentence"""
    lengths: npt.NDArray[np.uint32]
    """Characters before the last answer, and of it, [rows, 2]"""
    language: npt.NDArray[np.bytes_]
    """ISO 639 codes; empty where nobody can tell"""
    bands: Hashes
    """Keys by which near repeats meet, [rows, BANDS]; [0, BANDS] where they are not looked for"""
    low: npt.NDArray[np.uint8]
    """The lowest byte of each hash of the MinHash, [rows, HASHES]"""
    shared: tuple[Shared, ...] = ()
    """What the rows have in common with each index"""
    grams: Hashes | None = None
    """Of reference rows: the n-grams, end to end"""
    begins: Offsets | None = None
    """Where those of each reference row begin, [rows + 1]"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """The work: what is looked for in rows, and what they are compared with."""

    ngram: int
    near: bool
    """Make MinHashes"""
    languages: bool
    indexes: tuple[Path, ...] = ()
    """Folders of `ReferenceIndex`"""

    def open(self) -> Callable[[ScanItem], Scanned]:
        """Return the function of a block."""
        hashes = WordHashes()
        detect = libraries.language_detector() if self.languages else None
        indexes = [ReferenceIndex.open(path) for path in self.indexes]

        def work(item: ScanItem) -> Scanned:
            if item.reference:
                return _scan_reference(item, self, hashes)
            return _scan(item, self, hashes, detect, indexes)

        return work


@dataclass(slots=True)
class _Texts:
    """The parts of one row that are compared."""

    before: str
    """What stands before the last answer"""
    answer: str
    """The last answer; all texts of a row without one"""
    is_question: bool
    before_words: list[str]
    answer_words: list[str]
    compared: list[str]
    """The words of everything but system messages"""


def _texts(conversation: Conversation) -> _Texts:
    contents = [message.content for message in conversation]
    words = [words_of(content) for content in contents]
    last = next((n for n in reversed(range(len(conversation))) if conversation[n].role == "assistant"), None)
    compared = [word for message, its in zip(conversation, words, strict=True) if message.role != "system" for word in its]
    if last is None:
        return _Texts("", "\n".join(contents), False, [], compared, compared)
    before_words = list(chain.from_iterable(words[:last]))
    return _Texts("\n".join(contents[:last]), contents[last], True, before_words, words[last], compared)


class _Row(NamedTuple):
    """What is kept of one row, see `Scanned`."""

    number: int
    exact: bytes
    compared: list[str]
    """The words by which the row is compared with others"""
    flags: int = 0
    question: int = NO_QUESTION
    answer: int = 0
    ending: int = 0
    lengths: tuple[int, int] = (0, 0)
    language: str = ""


_COLUMNS = {"number": "i8", "flags": "u4", "question": "u8", "answer": "u8", "ending": "u8", "language": "S3"}
"""Values of a row that become a column of `Scanned`, with its type"""


def _scanned(
    item: ScanItem, bad: BadRows, rows: Sequence[_Row], *, shared: tuple[Shared, ...] = (), **of_texts: npt.NDArray[Any]
) -> Scanned:
    """Return the columns of rows, beside those that are made of the texts of all together."""
    columns = {name: np.array([getattr(row, name) for row in rows], kind) for name, kind in _COLUMNS.items()}
    return Scanned(
        file=item.file,
        bytes_read=item.chunk.bytes_read,
        bad=bad,
        numbers=columns.pop("number"),
        exact=_exact(rows),
        lengths=np.array([row.lengths for row in rows], np.uint32).reshape(-1, 2),
        shared=shared,
        **columns,
        **of_texts,
    )


def _exact(rows: Sequence[_Row]) -> Hashes:
    return np.frombuffer(b"".join(row.exact for row in rows), np.uint64)


def _scan(
    item: ScanItem,
    scan: Scan,
    hashes: WordHashes,
    detect: Callable[[str], str] | None,
    indexes: Sequence[ReferenceIndex],
) -> Scanned:
    source = item.chunk.source
    bad = BadRows()
    rows: list[_Row] = []
    for row in source.rows(item.chunk.block):
        try:
            rows.append(_row(row.number, _read(row.fields(), item.rows), detect))
        except BadRow as error:
            bad.add(source.place(row.number), error)
            kind = kinds.EMPTY if isinstance(error, EmptyRow) else kinds.UNUSABLE
            unlike_others = mixed(np.array([row.number], np.uint64) + np.uint64(item.file)).tobytes()
            rows.append(_Row(row.number, unlike_others, [], flags=1 << kinds.BITS[kind]))
    flat, offsets = hashes.flat([row.compared for row in rows])
    bands, low = _near(flat, offsets) if scan.near else _NOT_NEAR
    grams, begins = ngrams(flat, offsets, scan.ngram) if indexes else (flat[:0], offsets)
    exact = _exact(rows)
    return _scanned(
        item, bad, rows, bands=bands, low=low, shared=tuple(index.shared(grams, begins, exact) for index in indexes)
    )


def _read(fields: Mapping[str, object], formats: Sequence[RowFormat]) -> Conversation:
    """Return what a row says, by the first format that can read it. Raises BadRow as the first one does."""
    first: BadRow | None = None
    for row_format in formats:
        try:
            return row_format.conversation(fields)
        except BadRow as error:
            first = first or error
    assert first is not None
    raise first


def _row(number: int, conversation: Conversation, detect: Callable[[str], str] | None) -> _Row:
    texts = _texts(conversation)
    return _Row(
        number=number,
        exact=digest(conversation),
        compared=texts.compared,
        flags=_flags(conversation, texts),
        question=text_hash(texts.before_words) if texts.before_words else NO_QUESTION,
        answer=text_hash(texts.answer_words),
        ending=_ending(texts.answer, texts.answer_words) if texts.is_question else 0,
        lengths=(len(texts.before), len(texts.answer)),
        language=detect(texts.answer) or detect(texts.before) if detect else "",
    )


def _flags(conversation: Conversation, texts: _Texts) -> int:
    """Return the bits of a row that can be read. Of several answers each is looked at."""
    flags = 0
    if texts.is_question:
        answers = [message.content for message in conversation if message.role == "assistant"]
        split = [texts.answer_words] if len(answers) == 1 else [words_of(answer) for answer in answers]
        if any(map(is_empty, answers, split)):
            flags |= 1 << kinds.BITS[kinds.EMPTY]
        if any(map(is_refusal, answers, split)):
            flags |= 1 << kinds.BITS[kinds.REFUSING]
        if any(map(is_cut, answers, split)):
            flags |= 1 << kinds.BITS[kinds.CUT_OFF]
    text = "\n".join(part for message in conversation for part in (message.reasoning, message.content) if part)
    complete = conversation[-1].role in ("assistant", "text") and not any(message.reasoning for message in conversation)
    words = [*texts.before_words, *texts.answer_words] if complete else words_of(text)
    for kind in identifiers(text, words):
        flags |= 1 << kinds.BITS[kinds.IDENTIFIERS[kind]]
    return flags


def _ending(answer: str, words: Sequence[str]) -> int:
    if len(words) < 4:
        return 0
    if ends_sentence(answer):
        return 1
    return text_hash(words[-4:-1])


def _near(flat: Hashes, offsets: Offsets) -> tuple[Hashes, npt.NDArray[np.uint8]]:
    """Return band keys and low bytes of all rows. A row that is too short has keys that no other row has."""
    shingles, begins = ngrams(flat, offsets, _NEAR_WORDS)
    made = libraries.signatures(shingles, begins)
    bands = band_keys(made)
    bands[np.diff(offsets) < _LEAST_NEAR_WORDS] = 0
    return bands, made.astype(np.uint8)


def _scan_reference(item: ScanItem, scan: Scan, hashes: WordHashes) -> Scanned:
    """Return numbers, exact hashes and n-grams of rows that others are compared with.

    A row that is of another format (benchmarks have keys of their own) is compared by all the text that it has.
    """
    source = item.chunk.source
    bad = BadRows()
    rows: list[_Row] = []
    for row in source.rows(item.chunk.block):
        try:
            fields = row.fields()
        except BadRow as error:
            bad.add(source.place(row.number), error)
            continue
        try:
            conversation = _read(fields, item.rows)
            rows.append(_Row(row.number, digest(conversation), _texts(conversation).compared))
        except BadRow:
            words = words_of("\n".join(str(find(fields, key)[1]) for key in string_names(fields)))
            rows.append(_Row(row.number, bytes(8), words))
    grams, begins = ngrams(*hashes.flat([row.compared for row in rows]), scan.ngram)
    bands, low = _NOT_NEAR
    return _scanned(item, bad, rows, bands=bands, low=low, grams=grams, begins=begins)
