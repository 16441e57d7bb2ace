"""Tells by its content what a file of rows is, and gives its source; or says what the file is instead."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import orjson

from medsft.core.data.sources.base import RowSource
from medsft.core.data.sources.csv_shape import csv_source
from medsft.core.data.sources.file_kind import SPREAD_OBJECTS, Kind, by_magic, is_broken_over_lines, refused, text_kind
from medsft.core.data.sources.json_object import BOM
from medsft.core.data.sources.json_shape import array_source, object_source
from medsft.core.data.sources.jsonl import JsonlSource
from medsft.core.data.sources.streams import open_stream, packing_of
from medsft.core.data.sources.tables import table_kind, table_source
from medsft.core.models.checked_json import refuse_pointer
from medsft.errors import DataError

HEAD_BYTES = 2**16
_ARRAY_BEGINS = re.compile(rb'\[\s*([\[\]{"0-9-]|$)')
"""Not `[name]`, as settings files have it."""


def open_rows(path: Path) -> RowSource:
    """The rows of a file, packed or not. Reads its beginning only.

    Raises DataError for a file that is not there, not readable, damaged where it begins, or of a kind that holds no rows.
    """
    with open_stream(path) as (stream, raw_stream):
        head = stream.read(HEAD_BYTES + 1)
        raw_stream.seek(0)
        packing = packing_of(raw_stream.read(HEAD_BYTES))
    refuse_pointer(path, head, DataError)
    source = _source(path, head[:HEAD_BYTES], whole=len(head) <= HEAD_BYTES, packed=packing is not None)
    if isinstance(source, Kind):
        raise refused(path, source, packing)
    return source


def _source(path: Path, head: bytes, *, whole: bool, packed: bool) -> RowSource | Kind:
    """The rows of a file that begins so, or what it is instead. `whole`: that is all of it."""
    if table := table_kind(head):
        return Kind(f"{table} packed once more", "unpack it") if packed else table_source(path, table)
    if kind := by_magic(head):
        return kind
    text = head.removeprefix(BOM).lstrip()
    first, _, rest = text.partition(b"\n")
    if _ARRAY_BEGINS.match(text):  # several lines with an array on each are rows that are arrays: said of each row
        return JsonlSource(path) if rest.strip() and _is_json(first) else array_source(path, head, text)
    if text.startswith(b"{"):
        one_line = not rest.strip()
        if one_line or is_broken_over_lines(text):
            source = object_source(path, head, text, one_line=one_line)
            if source is not None:
                return source
    if any(line.startswith(b"{") and _is_json(line) for line in text.splitlines()):
        return JsonlSource(path)
    if text.startswith(b"{") and is_broken_over_lines(text):
        return SPREAD_OBJECTS
    if not text or any(line.lstrip().startswith(b"{") for line in text.split(b"\n")):
        return JsonlSource(path)
    if not whole and not rest:  # nothing but the beginning of one line
        return JsonlSource(path)
    return csv_source(path, head, text, whole=whole) or text_kind(text)


def _is_json(line: bytes) -> bool:
    try:
        orjson.loads(line)
    except ValueError:
        return False
    return True


def no_rows(files: Iterable[Path]) -> DataError:
    """Return the error of files that can be read and hold no row."""
    return DataError(
        "the data holds no row that can be used: " + ", ".join(map(str, files)), hint="the files are empty; check --data"
    )


def refuse_unreadable(files: Iterable[Path]) -> None:
    """Raise DataError, before anything is done with any of them, for a file that `open_rows` refuses."""
    for path in files:
        open_rows(path)
