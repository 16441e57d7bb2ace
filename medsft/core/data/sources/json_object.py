"""One JSON object out of bytes, with the exact reason for one that is none."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import orjson

from medsft.core.data.sources.base import BadRow
from medsft.core.data.sources.columns import REPEATED, RepeatedKey, members

BOM = b"\xef\xbb\xbf"
_NESTING = frozenset({dict, list})
_KEY_ENDS = re.compile(rb'"\s*:')
_SEVERAL = "more than one JSON value in the line"
_CAREFUL = json.JSONDecoder(object_pairs_hook=tuple, parse_int=float)
"""Objects come back as tuples of pairs and arrays as lists, so that a repeated key is still there to be seen. A whole number
becomes a float: Python takes no more than 4,300 digits, and nobody reads it. Made once, for it costs more than a row."""


def read_object(raw: bytes) -> Mapping[str, object]:
    """Parse the JSON object of a row; see `columns.members` for objects inside it.

    A byte order mark at its beginning is where files were joined, not text. Raises BadRow.
    """
    raw = raw.removeprefix(BOM)
    try:
        row = orjson.loads(raw)
        # Text may add matches, never hide one: as many matches as keys means that no key was there twice.
        if isinstance(row, dict) and ((ends := len(_KEY_ENDS.findall(raw))) == len(row) or ends == _count_keys(row)):
            return row
    except ValueError:
        pass  # the slower parser takes more, and what it does not take gets a reason below
    return _object_with_care(raw)


def _count_keys(row: dict[str, object]) -> int:
    """Return how many keys a row and the objects inside it have."""
    count = len(row)
    waiting: list[Any] = [value for value in row.values() if type(value) in _NESTING]
    for value in waiting:  # which grows: nesting may be deeper than recursion goes
        if type(value) is dict:
            count += len(value)
            value = value.values()
        for inner in value:
            if type(inner) is dict:  # a message, most often: two strings
                count += len(inner)
                waiting += [deeper for deeper in inner.values() if type(deeper) in _NESTING]
            elif type(inner) is list:
                waiting.append(inner)
    return count


def parsed(raw: bytes, *, several: str = _SEVERAL) -> Mapping[str, object] | BadRow:
    """What `read_object` returns, or the reason why it returns nothing; `several` is that for a value behind the first."""
    try:
        return read_object(raw)
    except BadRow as bad:
        reason = str(bad)
        return BadRow(reason.replace(_SEVERAL, several), bad.keys)  # without its traceback, which holds the row


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
        raise BadRow(REPEATED) from None


def _not_json(text: str, error: ValueError) -> str:
    """The reason, as exact as it can be without text of the row."""
    stripped = text.strip()
    if stripped.startswith("{'"):
        return "not JSON: single quotes, as Python writes its dicts"
    if stripped.endswith("},"):
        return "not JSON: a comma follows the object, as in a JSON array"
    if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
        ends = " (the line ends are CR alone, as on old Macs)" if "\r" in stripped else ""
        return f"{_SEVERAL}{ends}"
    return "not JSON"
