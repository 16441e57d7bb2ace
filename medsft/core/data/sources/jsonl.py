"""Question/answer rows out of JSONL files: in order, in constant memory, with the place of every row that is wrong.

    files -> blocks -> lines (file:line) -> read_object -> row -> example_of -> Example | BadRow

A message about a row names its place, what is wrong with it and the keys that it has, never its text: a row may be about a
patient.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from medsft.core.data.sources import lines
from medsft.core.data.sources.columns import KeyProposal, Keys, RepeatedKey, find, members, names, proposal, shown, string_names
from medsft.core.data.sources.lines import BOM, Line, read_lines
from medsft.errors import DataError

SHOWN_BAD_ROWS = 20
_MOST_REASONS = 100
"""Reasons hold keys that people chose: this many are told apart."""
_PROPOSAL_ROWS = 50
_KEY_ENDS = re.compile(rb'"\s*:')
_CAREFUL = json.JSONDecoder(object_pairs_hook=tuple, parse_int=float)
"""Objects come back as tuples of pairs and arrays as lists, so that a repeated key is still there to be seen. A whole number
becomes a float: Python takes no more than 4,300 digits, and nobody reads it. Made once, for it costs more than a row."""
_REPEATED = "the same key twice in one object"


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One question, its answer, and the system message if there is one."""

    question: str
    answer: str
    system: str | None = None


class BadRow(ValueError):
    """A row that cannot be used; the message is the reason."""

    def __init__(self, reason: str, keys: Sequence[str] = ()) -> None:
        super().__init__(reason)
        self.keys = tuple(keys)
        """Those that the row has, where that helps."""


@dataclass(slots=True)
class BadRows:
    """The first bad rows by place, and how many there are for each reason."""

    places: list[tuple[int, int, str]] = field(default_factory=list)
    """(index of the file, line number, reason) of at most `SHOWN_BAD_ROWS` rows."""
    reasons: Counter[str] = field(default_factory=Counter)
    keys: tuple[str, ...] = ()
    """Those of the first row that does not have what was asked for."""

    @property
    def total(self) -> int:
        """Number of bad rows met, also of those whose place was not kept."""
        return self.reasons.total()

    def add(self, line: Line, bad: BadRow) -> None:
        """Note one bad row."""
        reason = str(bad)
        self.reasons[reason if reason in self.reasons or len(self.reasons) < _MOST_REASONS else "other reasons"] += 1
        if len(self.places) < SHOWN_BAD_ROWS:
            self.places.append((line.file, line.number, reason))
        self.keys = self.keys or bad.keys

    def merge(self, later: BadRows) -> None:
        """Append the rows of a later part of the input."""
        self.places += later.places[: SHOWN_BAD_ROWS - len(self.places)]
        self.reasons += later.reasons
        self.keys = self.keys or later.keys

    def error(self, files: Sequence[Path], *, then: str = "so nothing was written") -> DataError:
        """The one message that names them."""
        named = [f"{files[file]}:{number}: {reason}" for file, number, reason in self.places]
        if self.total > len(named):
            named.append(f"... and {self.total - len(named)} more")
        if self.keys:
            named.append(f"The keys of the first of them: {shown(self.keys)}")
        rows = "1 row" if self.total == 1 else f"{self.total} rows"
        return DataError(f"{rows} cannot be used, {then}:\n" + "\n".join(named), hint=self._remedy())

    def _remedy(self) -> str:
        """What to do about it, as the keys show what kind of rows these are."""
        outer = {key.partition(".")[0] for key in self.keys}
        if outer & {"messages", "conversations"}:
            return (
                "these are conversations: write each as one question and one answer, such as "
                '{"prompt": "...", "gold": "..."}, or leave such rows out with --bad_rows skip'
            )
        if {"data", "annotations"} <= outer:
            return (
                "these are tasks of Label Studio: the question is `--question_key data.NAME`; move the answers out of "
                "`annotations` to a key of their own and name that with --answer_key"
            )
        usual, missing = proposal(self.keys), any(reason.startswith("no key ") for reason in self.reasons)
        likely = f"--question_key {usual.question} --answer_key {usual.answer}"
        choice = f" (these rows look like {likely})" if missing and usual.question and usual.answer else ""
        encoding = "save the file as UTF-8, " if "broken UTF-8" in self.reasons else ""
        return (
            f"{encoding}correct them, choose other keys with --question_key, --answer_key and --system_key{choice}, "
            "or leave such rows out with --bad_rows skip"
        )


def parse_row(raw: bytes | None, keys: Keys) -> Example:
    """Read one line. Raises BadRow with a reason that holds no text of the row."""
    return example_of(read_object(raw), keys)


def example_of(row: Mapping[str, object], keys: Keys) -> Example:
    """Take the texts out of a row. Raises BadRow.

    A system message that is absent, null or empty is none: rows with and without one stand in the same file.
    """
    question, answer = _text(row, keys.question), _text(row, keys.answer)
    system = None if keys.system is None else _text(row, keys.system, optional=True)
    if not question.strip():
        raise BadRow(f"empty question under '{keys.question}'")
    if not answer.strip():
        raise BadRow(f"empty answer under '{keys.answer}'")
    return Example(question=question, answer=answer, system=system or None)


def read_object(raw: bytes | None) -> Mapping[str, object]:
    """Parse one line (None: one that was too long) into its object; see `columns.members` for objects inside it.

    A byte order mark at its begin is where files were joined, not text. Raises BadRow.
    """
    if raw is None:
        raise BadRow(f"line longer than {lines.MAX_LINE_BYTES // 2**20} MiB")
    raw = raw.removeprefix(BOM)
    try:
        row = orjson.loads(raw)
        # Text may add matches, never hide one: as many matches as keys means that no key was there twice.
        if isinstance(row, dict) and len(_KEY_ENDS.findall(raw)) == len(row):
            return row
    except ValueError:
        pass  # the slower parser takes more, and what it does not take gets a reason below
    return _object_with_care(raw)


def _object_with_care(raw: bytes) -> Mapping[str, object]:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise BadRow("broken UTF-8") from None
    try:
        pairs = _CAREFUL.decode(text)
    except RecursionError:
        raise BadRow("nested too deeply") from None
    except ValueError as error:
        raise BadRow(_not_json(text, error)) from None
    if not isinstance(pairs, tuple):
        raise BadRow("not a JSON object")
    try:
        return members(pairs) or {}
    except RepeatedKey:
        raise BadRow(_REPEATED) from None


def _not_json(text: str, error: ValueError) -> str:
    """The reason, as exact as it can be without text of the row."""
    stripped = text.strip()
    if stripped.startswith("{'"):
        return "not JSON: single quotes, as Python writes its dicts"
    if stripped.endswith("},"):
        return "not JSON: a comma follows the object, as in a JSON array"
    if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
        ends = " (the line ends are CR alone, as on old Macs)" if "\r" in stripped else ""
        return f"more than one JSON value in the line{ends}"
    return "not JSON"


_TYPES: Mapping[type, str] = {
    **dict.fromkeys((int, float), "a number"),
    bool: "true or false",
    list: "a list",
    **dict.fromkeys((dict, tuple), "an object"),
    type(None): "null",
}


def _text(row: Mapping[str, object], key: str, *, optional: bool = False) -> str:
    """The string under a key; with `optional` an absent one and null are empty."""
    try:
        there, value = find(row, key)
    except RepeatedKey:
        raise BadRow(_REPEATED) from None
    if optional and value is None:
        return ""
    if not there:
        raise BadRow(f"no key '{key}'", names(row))
    if not isinstance(value, str):
        raise BadRow(f"'{key}' is {_TYPES[type(value)]}, not a string", names(row))
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair
        raise BadRow(f"half of a surrogate pair (an escape from \\ud800 to \\udfff) under '{key}'") from None
    return value


def read_examples(files: Iterable[Path], keys: Keys, *, skip_bad: bool = False) -> Iterator[Example]:
    """Stream the examples of several files in order. Raises DataError at the first bad row, or leaves bad rows out."""
    paths = list(files)
    for index, path in enumerate(paths):
        for line in read_lines(path, index):
            try:
                yield parse_row(line.raw, keys)
            except BadRow as bad:
                if not skip_bad:
                    found = BadRows()
                    found.add(line, bad)
                    raise found.error(paths) from None


def propose_keys(path: Path) -> KeyProposal:
    """Look at the first rows of a file and propose its keys by their usual names; None where there is no such name.

    Raises DataError when the file cannot be read.
    """
    common: list[str] | None = None
    rows = 0
    for line in read_lines(path):
        try:
            row = read_object(line.raw)
        except BadRow:
            continue
        strings = string_names(row)
        common = strings if common is None else [key for key in common if key in strings]
        rows += 1
        if rows == _PROPOSAL_ROWS:
            break
    return proposal(common or ())
