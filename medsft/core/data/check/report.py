"""What a check found: counts, and the places of rows, never their text."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from medsft.core.data.check.kinds import KINDS, LEFT_OUT, Kind
from medsft.core.data.sources.base import RowSource
from medsft.core.units import count

_PLACES_IN_JSON = 10_000
"""Of each kind; the numbers are always those of all rows."""

Rows = npt.NDArray[np.int64]


@dataclass(slots=True)
class Places:
    """Where the rows of some files stand."""

    sources: list[RowSource] = field(default_factory=list)
    numbers: list[npt.NDArray[np.int64]] = field(default_factory=list)
    firsts: list[int] = field(default_factory=lambda: [0])
    """Of each block its first row, and how many there are in all"""
    files: list[int] = field(default_factory=list)
    """Of each block its file"""

    def add(self, file: int, numbers: npt.NDArray[np.int64]) -> None:
        """Take the row numbers of a further block."""
        self.numbers.append(numbers)
        self.files.append(file)
        self.firsts.append(self.firsts[-1] + len(numbers))

    @property
    def total(self) -> int:
        """Number of rows."""
        return self.firsts[-1]

    def file_of_rows(self) -> npt.NDArray[np.int64]:
        """Return the number of each row's file."""
        return np.repeat(np.array(self.files, np.int64), np.diff(self.firsts))

    def of(self, row: int) -> str:
        """Return ``FILE:LINE`` of a row."""
        block = int(np.searchsorted(self.firsts, row, side="right")) - 1
        return self.sources[self.files[block]].place(int(self.numbers[block][row - self.firsts[block]]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The rows of one kind."""

    kind: Kind
    rows: Rows
    """Their numbers over all files, from 0, ascending"""
    others: Rows | None = None
    """For each the row that it is like, where there is one"""
    among: Places | None = None
    """Where those stand"""

    def places(self, own: Places, most: int) -> Iterator[tuple[str, str]]:
        """Yield the places of the first rows, each with that of the row it is like, or ""."""
        for number, row in enumerate(self.rows[:most].tolist()):
            other = self.among.of(int(self.others[number])) if self.others is not None and self.among is not None else ""
            yield own.of(row), other


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """All that a check found."""

    places: Places
    found: Mapping[Kind, Found]
    """Kinds with at least one row, in the order in which they are shown"""
    languages: Mapping[str, int]
    """ISO 639 code -> rows, the most frequent first; "" for rows whose language nobody can tell"""
    reasons: Mapping[str, int]
    """Why rows cannot be used -> rows"""
    advice: str
    """What may help against that, in a sentence; "" where nothing is known"""
    compared: Mapping[str, int]
    """Flag -> rows of its files that others were compared with"""
    not_checked: Sequence[str]
    """What was not looked for, each in a sentence"""

    @property
    def rows(self) -> int:
        """Number of rows looked at."""
        return self.places.total

    @property
    def errors(self) -> int:
        """Number of rows with an error of any kind."""
        return len(self.rows_of([kind for kind in self.found if kind.error]))

    def rows_of(self, kinds: Sequence[Kind]) -> Rows:
        """Return the rows of any of these kinds, ascending."""
        return np.unique(
            np.concatenate([np.zeros(0, np.int64), *(self.found[kind].rows for kind in kinds if kind in self.found)])
        )

    def left_out(self, *, with_identifiers: bool = True) -> Rows:
        """Return the rows that clean files are without; of rows with identifiers all, when these are not wanted."""
        kinds = [*LEFT_OUT, *(kind for kind in KINDS if kind.identifies and not with_identifiers)]
        return self.rows_of(kinds)

    def kinds_of(self, row: int) -> list[str]:
        """Return the names of the kinds of a row."""
        return [kind.name for kind, found in self.found.items() if _has(found.rows, row)]

    def sentences(self) -> list[str]:
        """Return a sentence for each kind that was found."""
        of = count(self.rows)
        return [f"{count(len(found.rows))} of {of} rows {kind.meaning(len(found.rows))}." for kind, found in self.found.items()]

    def summary(self, kinds: Collection[Kind]) -> str:
        """Return one sentence on the rows of some kinds; "" when there are none."""
        named = [
            f"{count(len(found.rows))} {kind.meaning(len(found.rows))}" for kind, found in self.found.items() if kind in kinds
        ]
        return f"of {count(self.rows)} rows that were looked at, {', '.join(named)}" if named else ""

    def to_json(self) -> dict[str, Any]:
        """Return the report for programs. Places are those of the first rows of each kind."""
        found = {}
        for kind in KINDS:
            here = self.found.get(kind)
            pairs = list(here.places(self.places, _PLACES_IN_JSON)) if here else []
            found[kind.name] = {
                "rows": len(here.rows) if here else 0,
                "error": kind.error,
                "means": f"rows that {kind.means}",
                "places": [{"row": row, "like": like} if like else {"row": row} for row, like in pairs],
            }
        return {
            "rows": self.rows,
            "rows_with_errors": self.errors,
            "found": found,
            "unusable_reasons": dict(self.reasons),
            "unusable_advice": self.advice,
            "languages": dict(self.languages),
            "compared_with": dict(self.compared),
            "not_checked": list(self.not_checked),
        }


def _has(rows: Rows, row: int) -> bool:
    place = int(np.searchsorted(rows, row))
    return place < len(rows) and int(rows[place]) == row
