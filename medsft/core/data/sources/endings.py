"""How files of rows are usually called. Only the wizard goes by it; what a file is, its content says."""

from __future__ import annotations

_OF_TEXT = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
_OF_TABLES = (".parquet", ".arrow", ".feather")
_PACKED = (".gz", ".zst", ".bz2", ".xz")

ROW_FILE_ENDINGS = (*_OF_TEXT, *(text + packed for text in _OF_TEXT for packed in _PACKED), *_OF_TABLES)
"""The most usual first."""


def without_ending(name: str) -> str:
    """Return a file's name without the ending of a file of rows."""
    for packed in _PACKED:
        name = name.removesuffix(packed)
    for ending in (*_OF_TEXT, *_OF_TABLES):
        if name.endswith(ending):
            return name.removesuffix(ending)
    return name
