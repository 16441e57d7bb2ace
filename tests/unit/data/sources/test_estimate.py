"""Estimates before anything is parsed: the right number of rows, in little memory, whatever the file looks like."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from medsft.core.data.sources import jsonl
from medsft.core.data.sources.jsonl import JsonlSource
from medsft.errors import DataError


@pytest.mark.parametrize(
    ("content", "sizes"),
    [
        (b"aaa\nbbbbb\n", [3, 5]),
        (b"aaa\nbbbbb", [3, 5]),
        (b"\n\naaa\n\r\n\nbbbbb\n\n", [3, 5]),
        (b"", []),
        (b"a" * 100 + b"\n" + b"b" * 7 + b"\n" + b"c" * 64, [100, 7, 64]),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_the_bytes_of_each_row(tmp_path: Path, monkeypatch, content, sizes, zipped):
    monkeypatch.setattr(jsonl, "_BLOCK_BYTES", 8)
    path = tmp_path / ("rows.jsonl.gz" if zipped else "rows.jsonl")
    path.write_bytes(gzip.compress(content) if zipped else content)
    assert JsonlSource(path).estimate().tolist() == sizes


def test_a_missing_file(tmp_path: Path):
    with pytest.raises(DataError, match=r"none\.jsonl"):
        JsonlSource(tmp_path / "none.jsonl").estimate()


def test_a_damaged_gzip_file(tmp_path: Path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps({"prompt": "x" * 1000}).encode())[:20])
    with pytest.raises(DataError, match="damaged"):
        JsonlSource(path).estimate()
