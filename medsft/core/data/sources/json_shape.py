"""Which rows a JSON text in one piece holds, told by its beginning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import orjson

from medsft.core.data.sources.columns import proposal
from medsft.core.data.sources.elements import ElementScanner, cut
from medsft.core.data.sources.json_array import MEMBER, JsonArraySource, is_rows, several_arrays

_OF_A_MESSAGE = frozenset(("role", "from", "content", "value"))
_OF_A_TASK = frozenset(("data", "annotations"))
"""Keys of one task of Label Studio."""


class _Member(NamedTuple):
    """A key of the outer object with its value, which is cut off where the beginning of the file ends."""

    key: str
    value: object
    """None for one that is cut off"""
    text: bytes
    place: int
    """Where the value begins"""


@dataclass(frozen=True, slots=True)
class _Shape:
    start: int
    """Bytes before the first row"""
    close: bytes
    member: str | None = None


def array_source(path: Path, head: bytes, text: bytes) -> JsonArraySource:
    """The rows of an array that the `text` at the end of a file's `head` begins with."""
    return _source(path, head, _Shape(len(head) - len(text) + 1, b"]"))


def object_source(path: Path, head: bytes, text: bytes, *, one_line: bool) -> JsonArraySource | None:
    """The rows of an object that the `text` at the end of a file's `head` begins with; None for one that is itself a row.

    Raises DataError for an object with several arrays of rows.
    """
    begins = len(head) - len(text) + 1
    members = _members(head[begins:], begins)
    if proposal(member.key for member in members).question or _OF_A_TASK.issubset(member.key for member in members):
        return None
    if _hold_rows_by_id(members, at_least=2 if one_line else 1):
        return _source(path, head, _Shape(begins, b"}"))
    arrays = [member for member in members if _begins_rows(member)]
    if len(arrays) > 1:
        raise several_arrays(path, [member.key for member in arrays])
    return _source(path, head, _Shape(arrays[0].place + 1, b"]", arrays[0].key)) if arrays else None


def _source(path: Path, head: bytes, shape: _Shape) -> JsonArraySource:
    line = 1 + head.count(b"\n", 0, shape.start)
    return JsonArraySource(path, shape.start, line, shape.close, shape.member)


def _members(text: bytes, begins: int) -> list[_Member]:
    """The members of an object, from the text behind its bracket; the last one may be cut off."""
    commas, end = ElementScanner(b"}").scan(text)
    place, members = begins, []
    for part in cut(text if end is None else text[:end], commas):
        if key := MEMBER.match(part):
            value = part[key.end() :]
            try:
                members.append(_Member(orjson.loads(key[1]), _parsed(value), value, place + key.end()))
            except ValueError:
                break
        place += len(part) + 1
    return members


def _hold_rows_by_id(members: Sequence[_Member], *, at_least: int) -> bool:
    """Whether all values are objects, and those that are there as a whole are alike."""
    rows = [frozenset(member.value) for member in members if isinstance(member.value, dict)]
    if len(rows) < at_least or not all(member.text.startswith(b"{") for member in members):
        return False
    common, all_keys = frozenset.intersection(*rows), frozenset[str]().union(*rows)
    return 2 * len(common) >= len(all_keys) > 0


def _begins_rows(member: _Member) -> bool:
    """Whether a value is an array of rows, not of the messages of one row."""
    if not member.text.startswith(b"["):
        return False
    inside = member.text[1:]
    commas, _ = ElementScanner(b"]").scan(inside)
    first = member.value[0] if is_rows(member.value) else _parsed(cut(inside, commas)[0])  # type: ignore[index]
    if isinstance(first, dict):
        return not _OF_A_MESSAGE & first.keys()
    return member.value is None and not len(commas) and inside.lstrip().startswith(b"{")


def _parsed(text: bytes) -> object:
    try:
        return orjson.loads(text)
    except ValueError:
        return None
