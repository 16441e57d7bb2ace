"""From the columns of all rows to what is found: pure functions of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from medsft.core.data.check import kinds
from medsft.core.data.check.kinds import KINDS, Kind
from medsft.core.data.check.libraries import INSTALL
from medsft.core.data.check.overlap import Shared
from medsft.core.data.check.report import CheckReport, Found, Places, Rows
from medsft.core.data.check.words import Hashes
from medsft.core.data.sources.bad_rows import BadRows

_LEAST_ROWS = 20
"""Below this many rows nobody can say what is usual."""
_OUTLIER = 5.0
"""Robust standard deviations of the logarithm of a length. 3.5 is usual for normal distributions; lengths have longer tails."""
_LEAST_SPREAD = 0.3
"""Of that logarithm: lengths within a factor of four are never outliers"""
_MOST_OUTLIERS = 0.1
"""Share of the rows. More of them are rows of another kind, such as those of a second file, and nothing unusual."""
_RARE_LANGUAGE = 0.05
"""A language with a smaller share of the rows is one that few rows have."""
_COMMON_END = 0.8
"""Share of the answers that end alike, from which on another end is a sign that something is missing"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What is kept of all rows, see `scan.Scanned`."""

    places: Places
    bad: BadRows
    flags: npt.NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, np.uint32))
    exact: Hashes = field(default_factory=lambda: np.zeros(0, np.uint64))
    question: Hashes = field(default_factory=lambda: np.zeros(0, np.uint64))
    answer: Hashes = field(default_factory=lambda: np.zeros(0, np.uint64))
    ending: Hashes = field(default_factory=lambda: np.zeros(0, np.uint64))
    lengths: npt.NDArray[np.uint32] = field(default_factory=lambda: np.zeros((0, 2), np.uint32))
    language: npt.NDArray[np.bytes_] = field(default_factory=lambda: np.zeros(0, "S3"))
    shared: Sequence[Sequence[Shared]] = ()

    @property
    def readable(self) -> npt.NDArray[np.bool_]:
        """Which rows can be read, [rows]."""
        unreadable = np.uint32(1 << kinds.BITS[kinds.UNUSABLE])
        return ((self.flags & unreadable) == 0) & (self.lengths[:, 1] > 0)

    def having(self, kind: Kind) -> Rows:
        """Return the rows with the flag of a kind."""
        return np.flatnonzero(self.flags & np.uint32(1 << kinds.BITS[kind]))


def judge(
    columns: Columns, groups: Rows | None, compared: Sequence[tuple[str, Places]], *, languages_told: bool
) -> CheckReport:
    """Return the report. `groups` has the first row of each row's group of near repeats, None where nobody looked for them.

    `compared` are the flags of what rows were compared with, in the order of `columns.shared`, with their places;
    `languages_told` says whether languages were looked for.
    """
    own = columns.places
    repeated, first = _repeated(columns)
    found = [Found(kind=kind, rows=columns.having(kind)) for kind in kinds.BITS if kind != kinds.CUT_OFF]
    found.append(Found(kind=kinds.REPEATED, rows=repeated, others=first[repeated], among=own))
    if groups is not None:
        near = np.setdiff1d(np.flatnonzero(groups != np.arange(len(groups))), repeated, assume_unique=True)
        found.append(Found(kind=kinds.NEAR_REPEATED, rows=near, others=groups[near], among=own))
    found.append(_contradicting(columns))
    for (flag, places), shared in zip(compared, columns.shared, strict=False):
        kind = kinds.IN_VAL if flag == "--val" else kinds.IN_AGAINST
        rows = np.concatenate([np.zeros(0, np.int64), *(block.rows for block in shared)])
        others = np.concatenate([np.zeros(0, np.int64), *(block.reference for block in shared)])
        found.append(Found(kind=kind, rows=rows, others=others, among=places))
    among = _of_one_kind(columns)
    other_ends, outliers, rare = (
        np.sort(np.concatenate([np.zeros(0, np.int64), *(unusual(columns, rows) for rows in among)]))
        for unusual in (_other_ends, _outliers, _rare_languages)
    )
    found.append(Found(kind=kinds.CUT_OFF, rows=np.union1d(columns.having(kinds.CUT_OFF), other_ends)))
    found.append(Found(kind=kinds.LENGTH, rows=outliers))
    found.append(Found(kind=kinds.LANGUAGE, rows=rare))
    languages = _languages(columns)
    by_kind = {one.kind: one for one in found}
    looked_for = (("near repeats", groups is not None), ("languages", languages_told))
    missing = " and ".join(what for what, there in looked_for if not there)
    return CheckReport(
        places=own,
        found={kind: by_kind[kind] for kind in KINDS if kind in by_kind and len(by_kind[kind].rows)},
        languages=languages,
        reasons=dict(columns.bad.reasons),
        advice=columns.bad.advice(),
        compared={flag: places.total for flag, places in compared},
        not_checked=[f"{missing[0].upper()}{missing[1:]} were not looked for: {INSTALL}"] if missing else [],
    )


def _repeated(columns: Columns) -> tuple[Rows, Rows]:
    """Return the rows whose texts an earlier row has, and for every row the first one with its texts."""
    rows = len(columns.exact)
    _, firsts, inverse = np.unique(columns.exact, return_index=True, return_inverse=True)
    first = firsts[inverse]
    return np.flatnonzero((first != np.arange(rows)) & columns.readable), first


def _contradicting(columns: Columns) -> Found:
    """Return the rows whose question other rows have with another answer, each with the first row of that question."""
    asked = np.flatnonzero(columns.question != 0)
    questions, inverse = np.unique(columns.question[asked], return_inverse=True)
    pairs = np.unique(np.stack([inverse.astype(np.uint64), columns.answer[asked]], axis=1), axis=0)
    answers = np.bincount(pairs[:, 0].astype(np.int64), minlength=len(questions))
    order = np.lexsort((asked, inverse))
    begins = np.searchsorted(inverse[order], np.arange(len(questions)))
    rows = asked[answers[inverse] > 1]
    in_group = inverse[answers[inverse] > 1]
    first = asked[order[begins[in_group]]] if len(rows) else rows
    second = asked[order[np.minimum(begins[in_group] + 1, len(order) - 1)]] if len(rows) else rows
    others = np.where(first == rows, second, first)
    return Found(kind=kinds.CONTRADICTING, rows=rows, others=others, among=columns.places)


def _of_one_kind(columns: Columns) -> list[Rows]:
    """Return the readable rows that tell of one another what is usual: those of each file, and those of all small files.

    Files of a mixture differ by their nature: in language, in length, in a phrase that ends each answer.
    """
    rows = np.flatnonzero(columns.readable)
    files = columns.places.file_of_rows()[rows]
    numbers, counts = np.unique(files, return_counts=True)
    files[np.isin(files, numbers[counts < _LEAST_ROWS])] = -1
    order = np.argsort(files, kind="stable")
    parts = np.split(rows[order], np.flatnonzero(np.diff(files[order])) + 1)
    return [part for part in parts if len(part) >= _LEAST_ROWS]


def _other_ends(columns: Columns, rows: Rows) -> Rows:
    """Return the rows whose answer ends otherwise than nearly all: amid a sentence, or without the phrase they end with."""
    judged = rows[columns.ending[rows] != 0]
    if len(judged) < _LEAST_ROWS:
        return np.zeros(0, np.int64)
    values, counts = np.unique(columns.ending[judged], return_counts=True)
    common = values[np.argmax(counts)]
    if counts.max() < _COMMON_END * len(judged):
        return np.zeros(0, np.int64)
    return judged[columns.ending[judged] != common]


def _outliers(columns: Columns, rows: Rows) -> Rows:
    """Return the rows with a question or answer of unusual length, by median and MAD of the logarithms."""
    logs = np.log(np.maximum(columns.lengths[rows], 1).astype(np.float64))
    distance = np.abs(logs - np.median(logs, axis=0))
    spread = np.maximum(1.4826 * np.median(distance, axis=0), _LEAST_SPREAD)
    far = distance > _OUTLIER * spread
    return rows[(far & (far.mean(axis=0) <= _MOST_OUTLIERS)).any(axis=1)]


def _rare_languages(columns: Columns, rows: Rows) -> Rows:
    """Return the rows in languages that few of them have."""
    codes, inverse, counts = np.unique(columns.language[rows], return_inverse=True, return_counts=True)
    told = codes != b""
    known = int(counts[told].sum())
    rare = told & (counts < _RARE_LANGUAGE * known)
    return rows[rare[inverse]] if known >= _LEAST_ROWS else np.zeros(0, np.int64)


def _languages(columns: Columns) -> dict[str, int]:
    """Return how many rows are in each language, the most frequent first; nothing where none was told."""
    codes, counts = np.unique(columns.language[columns.readable], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    by_code = {codes[place].decode(): int(counts[place]) for place in order}
    return by_code if any(by_code) else {}
