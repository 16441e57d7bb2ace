"""Tells by its content what a file of rows is, and gives its source; or says what the file is instead."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from medsft.core.data.sources.base import RowSource
from medsft.core.data.sources.file_kind import HEAD_BYTES, refuse_other_kinds
from medsft.core.data.sources.jsonl import JsonlSource
from medsft.core.data.sources.streams import open_stream


def open_rows(path: Path) -> RowSource:
    """The rows of a file, plain or gzipped. Reads its beginning only.

    Raises DataError for a file that is not there, not readable, damaged where it begins, or of a kind that holds no rows.
    """
    with open_stream(path) as (stream, raw_stream):
        refuse_other_kinds(path, stream.read(HEAD_BYTES + 1), packed=stream is not raw_stream)
    return JsonlSource(path)


def refuse_unreadable(files: Iterable[Path]) -> None:
    """Raise DataError, before anything is done with any of them, for a file that `open_rows` refuses."""
    for path in files:
        open_rows(path)
