"""Parquet, Arrow and Feather: values as JSON would give them, in little memory, and what is damaged is named."""

from __future__ import annotations

import sys
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from medsft.core.data.sources import streams, tables
from medsft.core.data.sources.base import BadRow, all_rows
from medsft.core.data.sources.open import open_rows
from medsft.core.data.sources.tables import TableSource
from medsft.errors import DataError

MESSAGES = [
    [{"role": "user", "content": "é🙂"}, {"role": "assistant", "content": "b"}],
    [],
    None,
    [{"role": "user", "content": None}, None],
]


def read(path: Path) -> list[object]:
    source = open_rows(path)
    assert isinstance(source, TableSource)
    rows = list(all_rows(source))
    assert [source.place(row.number) for row in rows] == [f"{path}: row {number}" for number in range(1, len(rows) + 1)]
    assert len(source.estimate()) == len(rows)
    return [str(row.content) if isinstance(row.content, BadRow) else row.content for row in rows]


COLUMNS: list[tuple[str, Any, list[Any]]] = [
    ("text", pa.array(["x", None, "", "é"]), ["x", None, "", "é"]),
    ("large", pa.array(["x", None, "", "é"], pa.large_string()), ["x", None, "", "é"]),
    ("view", pa.array(["x", None, "", "é"], pa.string_view()), ["x", None, "", "é"]),
    ("category", pa.array(["a", "b", None, "a"]).dictionary_encode(), ["a", "b", None, "a"]),
    ("messages", pa.array(MESSAGES), MESSAGES),
    ("large_list", pa.array([["a"], [], None, ["b", None]], pa.large_list(pa.string())), [["a"], [], None, ["b", None]]),
    ("fixed", pa.array([["a", "b"]] * 4, pa.list_(pa.string(), 2)), [["a", "b"]] * 4),
    (
        "struct",
        pa.array([{"a": {"b": "x"}}, None, {"a": None}, {"a": {"b": None}}]),
        [{"a": {"b": "x"}}, None, {"a": None}, {"a": {"b": None}}],
    ),
    (
        "map",
        pa.array([[("k", "v")], [], None, [("l", None)]], pa.map_(pa.string(), pa.string())),
        [{"k": "v"}, {}, None, {"l": None}],
    ),
    ("numbers", pa.array([1, None, 3, 4]), [1, None, 3, 4]),
    ("floats", pa.array([1.5, float("nan"), None, float("inf")]), [1.5, None, None, None]),
    ("truth", pa.array([True, False, None, True]), [True, False, None, True]),
    ("day", pa.array([date(2026, 1, 2)] * 4), ["2026-01-02"] * 4),
    ("decimal", pa.array([Decimal("1.50")] * 4), ["1.50"] * 4),
    ("bytes", pa.array([b"x", b"\xff", None, "é".encode()]), ["x", None, None, "é"]),
    ("nothing", pa.nulls(4), [None] * 4),
]


@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
def test_values_are_those_of_json(tmp_path: Path, kind: str) -> None:
    table = pa.table({name: array for name, array, _ in COLUMNS})
    path = tmp_path / "rows"
    if kind == "parquet":
        pa.parquet.write_table(table, path, row_group_size=3)
    else:
        with (pa.ipc.new_file if kind == "file" else pa.ipc.new_stream)(str(path), table.schema) as writer:
            writer.write_table(table, 3)
    assert read(path) == [
        dict(zip(table.column_names, row, strict=True)) for row in zip(*(c for *_, c in COLUMNS), strict=True)
    ]


def test_a_row_of_broken_text_is_refused_alone(tmp_path: Path) -> None:
    offsets, data = np.array([0, 1, 2, 3], np.int32), b"a\xffc"
    texts = pa.Array.from_buffers(pa.string(), 3, [None, pa.py_buffer(offsets), pa.py_buffer(data)])
    pa.parquet.write_table(pa.table({"prompt": texts}), tmp_path / "a")
    assert read(tmp_path / "a") == [{"prompt": "a"}, "broken UTF-8", {"prompt": "c"}]


def test_blocks_are_small_and_carry_only_their_rows(tmp_path: Path) -> None:
    texts = [f"{number} " + "x" * 1000 for number in range(10_000)]
    table = pa.table({"prompt": texts, "gold": pa.array(texts).dictionary_encode()})
    pa.parquet.write_table(table, tmp_path / "p")
    with pa.ipc.new_file(str(tmp_path / "f"), table.schema) as writer:
        writer.write_table(table)  # in one batch
    for path in (tmp_path / "p", tmp_path / "f"):
        sizes = [len(block.content) for block in open_rows(path).blocks()]
        assert max(sizes) < 3 * 2**20
        assert sum(sizes) < 24 * 2**20


@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
def test_torn_and_flooding_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    table = pa.table({"prompt": ["x" * 500] * 50_000})
    path = tmp_path / "rows"
    if kind == "parquet":
        pa.parquet.write_table(table, path)
        monkeypatch.setattr(streams, "_RATIO_FROM_BYTES", 2**20)
        with pytest.raises(DataError, match="unpacks to more than 200 times its size"):
            list(open_rows(path).blocks())
    else:
        with (pa.ipc.new_file if kind == "file" else pa.ipc.new_stream)(str(path), table.schema) as writer:
            writer.write_table(table, 1000)
    raw = path.read_bytes()
    for torn in (raw[: len(raw) // 2], raw[:100] + raw[300:], raw[:20]):
        path.write_bytes(torn)
        with pytest.raises(DataError, match=r"ends early or is damaged|cannot be read"):
            list(all_rows(open_rows(path)))


def test_columns_with_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["gold", "gold"])
    pa.parquet.write_table(table, tmp_path / "a")
    with pytest.raises(DataError, match="several columns have the same name: `gold`"):
        open_rows(tmp_path / "a")


def test_without_pyarrow_or_zstd_the_line_for_pip_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"PAR1" * 10)
    (tmp_path / "b").write_bytes(b"\x28\xb5\x2f\xfd" * 10)
    for module in ("pyarrow", "backports", "backports.zstd", "compression.zstd"):
        monkeypatch.setitem(sys.modules, module, None)
    for name, extra in (("a", "parquet"), ("b", "zstd")):
        with pytest.raises(DataError) as caught:
            open_rows(tmp_path / name)
        assert f"pip install 'medsft[{extra}]'" in str(caught.value)
    assert tables.table_kind(b"\xff\xff\xff\xff") is None
