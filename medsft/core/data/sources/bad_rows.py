"""The rows that cannot be used, counted and named in one message."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from medsft.core.data.sources import usual_names
from medsft.core.data.sources.base import BadRow
from medsft.core.data.sources.columns import proposal, shown
from medsft.errors import DataError

SHOWN_BAD_ROWS = 20
_SHOWN_IN_A_ROW = 3
"""Of rows that follow one another and lack the same key: a file of another kind, of which more places say nothing new."""
_NUMBER = re.compile(r"\d+$")
_MOST_REASONS = 100
"""Reasons hold keys that people chose: this many are told apart."""


@dataclass(slots=True)
class BadRows:
    """The first bad rows by place, and how many there are for each reason."""

    places: list[tuple[str, str]] = field(default_factory=list)
    """(place, reason) of at most `SHOWN_BAD_ROWS` rows."""
    reasons: Counter[str] = field(default_factory=Counter)
    keys: tuple[str, ...] = ()
    """Those of the first row that does not have what was asked for."""

    @property
    def total(self) -> int:
        """Number of bad rows met, also of those whose place was not kept."""
        return self.reasons.total()

    def add(self, place: str, bad: BadRow) -> None:
        """Note one bad row and its place, see `RowSource.place`."""
        reason = str(bad)
        self.reasons[reason if reason in self.reasons or len(self.reasons) < _MOST_REASONS else "other reasons"] += 1
        if len(self.places) < SHOWN_BAD_ROWS:
            self.places.append((place, reason))
        self.keys = self.keys or bad.keys

    def merge(self, later: BadRows) -> None:
        """Append the rows of a later part of the input."""
        self.places += later.places[: SHOWN_BAD_ROWS - len(self.places)]
        self.reasons += later.reasons
        self.keys = self.keys or later.keys

    def error(self, *, then: str = "so nothing was written") -> DataError:
        """The one message that names them."""
        alike = bool(self.keys) and len(self.reasons) == 1 and _follow_one_another([place for place, _ in self.places])
        named = [f"{place}: {reason}" for place, reason in self.places[: _SHOWN_IN_A_ROW if alike else None]]
        if self.total > len(named):
            named.append(f"... and {self.total - len(named)} more")
        if self.keys:
            named.append(f"The keys of the first of them: {shown(self.keys)}")
        rows = "1 row" if self.total == 1 else f"{self.total} rows"
        return DataError(f"{rows} cannot be used, {then}:\n" + "\n".join(named), hint=self._remedy())

    def _remedy(self) -> str:
        """What to do about it, as the keys show what kind of rows these are."""
        outer = {key.partition(".")[0] for key in self.keys}
        if {"data", "annotations"} <= outer:
            return (
                "these are tasks of Label Studio: the question is `--question_key data.NAME`; move the answers out of "
                "`annotations` to a key of their own and name that with --answer_key"
            )
        encoding = "save the file as UTF-8 (in Excel: CSV UTF-8), " if "broken UTF-8" in self.reasons else ""
        if encoding and len(self.reasons) == 1:
            return f"{encoding}or leave such rows out with --bad_rows skip"
        return f"{encoding}correct them, choose {self._choice()}, or leave such rows out with --bad_rows skip"

    def advice(self) -> str:
        """Return which keys the first of the rows has that lacks others, and how such rows may be read; "" without one."""
        return f"The keys of the first of them: {shown(self.keys)}. Choose {self._choice()}." if self.keys else ""

    def _choice(self) -> str:
        missing = any(reason.startswith("no key ") for reason in self.reasons)
        likely = _likely_options(self.keys, {key.partition(".")[0] for key in self.keys}) if missing else ""
        if not likely and missing:
            return "--format, or the keys of these rows (--question_key KEY --answer_key KEY)"
        return "--format or other keys" + (f" (these rows look like {likely})" if likely else "")


def _follow_one_another(places: Sequence[str]) -> bool:
    """Tell whether these are neighboring rows of one file, by the numbers at their ends."""
    numbers = [int(found[0]) for place in places if (found := _NUMBER.search(place))]
    files = {_NUMBER.sub("", place) for place in places}
    return len(files) == 1 and numbers == list(range(numbers[0], numbers[0] + len(places))) if numbers else False


def _likely_options(keys: Sequence[str], outer: Collection[str]) -> str:
    """Return the options by which rows with these keys can be read, as far as the usual names tell; else nothing."""
    if usual_names.usual(outer, usual_names.MESSAGES):
        return "--format sharegpt" if "conversations" in outer else "--format messages"
    if usual_names.usual(outer, usual_names.OPTIONS) or usual_names.option_columns(keys):
        return "--format mcq"
    if usual_names.usual(keys, usual_names.INSTRUCTION) and usual_names.usual(keys, usual_names.INPUT):
        return "--format alpaca"
    usual = proposal(keys)
    if usual.question and usual.answer:
        return f"--question_key {usual.question} --answer_key {usual.answer}"
    return "--format text" if usual_names.usual(outer, usual_names.TEXT) else ""
