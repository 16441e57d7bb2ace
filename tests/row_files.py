"""Writes the same rows as every kind of file that holds rows."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Rows = Sequence[Mapping[str, Any]]

PACKERS: Mapping[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd.compress,
}


def as_jsonl(rows: Rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _write_csv(path: Path, rows: Rows, delimiter: str = ",", encoding: str = "utf-8") -> None:
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def _write_text(path: Path, value: object, indent: int | None = None) -> None:
    path.write_text(json.dumps(value, indent=indent), encoding="utf-8")


def _write_packed(name: str, path: Path, rows: Rows) -> None:
    path.write_bytes(PACKERS[name](as_jsonl(rows)))


def _write_arrow_stream(path: Path, rows: Rows) -> None:
    table = pa.Table.from_pylist(list(rows))
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, 100)


FLAT: Mapping[str, Callable[[Path, Rows], object]] = {
    "csv": _write_csv,
    "tsv": lambda path, rows: _write_csv(path, rows, "\t"),
    "excel": lambda path, rows: _write_csv(path, rows, ";", "utf-8-sig"),
    "unicode-text": lambda path, rows: _write_csv(path, rows, "\t", "utf-16"),
}
"""Writers of files without lists and objects in a row"""
NESTED: Mapping[str, Callable[[Path, Rows], object]] = {
    "jsonl": lambda path, rows: path.write_bytes(as_jsonl(rows)),
    "utf-16": lambda path, rows: path.write_bytes(as_jsonl(rows).decode().encode("utf-16")),
    "utf-16-be": lambda path, rows: path.write_bytes(as_jsonl(rows).decode().encode("utf-16-be")),
    "utf-32": lambda path, rows: path.write_bytes(as_jsonl(rows).decode().encode("utf-32")),
    **{name: partial(_write_packed, name) for name in PACKERS},
    "array": lambda path, rows: _write_text(path, rows),
    "pretty": lambda path, rows: _write_text(path, rows, 2),
    "keyed": lambda path, rows: _write_text(path, {f"row {n}": row for n, row in enumerate(rows)}),
    "member": lambda path, rows: _write_text(path, {"version": "1", "rows": rows, "tags": ["x"]}, 1),
    "parquet": lambda path, rows: pa.parquet.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=100),
    "feather": lambda path, rows: pa.feather.write_feather(pa.Table.from_pylist(list(rows)), path, chunksize=100),
    "arrow": _write_arrow_stream,
}
"""Writers of files for any rows"""
