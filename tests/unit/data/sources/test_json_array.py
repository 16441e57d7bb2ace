"""JSON in one piece, against Python's own parser: rows, their places, what is wrong with them, in parts of any size."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsft.core.data.sources import columns, json_array, streams
from medsft.core.data.sources.base import BadRow, all_rows
from medsft.core.data.sources.open import open_rows
from medsft.errors import DataError

SECRET = "Mrs Smith"
TEXTS = st.text(st.sampled_from('ab\\"\n[]{},:é🙂 '), max_size=12)
ROWS = st.lists(st.fixed_dictionaries({"q": TEXTS, "in": st.lists(st.dictionaries(TEXTS, TEXTS, max_size=2), max_size=2)}))


def read(path: Path) -> list[tuple[str, object]]:
    """The place of each row of a file without its folder, and its fields or why it has none."""
    source = open_rows(path)
    rows = list(all_rows(source))
    return [
        (source.place(row.number).rpartition("/")[2], str(row.content) if isinstance(row.content, BadRow) else row.content)
        for row in rows
    ]


def plain(value: Any) -> Any:
    """A row with its objects as dicts; the slower parser gives tuples of pairs."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    fields = columns.members(value)
    return value if fields is None else {key: plain(inner) for key, inner in fields.items()}


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "a.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@settings(max_examples=25, deadline=None)
@given(rows=ROWS, indent=st.sampled_from([None, 0, 2]), ascii_only=st.booleans(), part=st.integers(1, 40))
def test_rows_are_those_of_the_parser_wherever_the_text_is_cut(tmp_path_factory, rows, indent, ascii_only, part) -> None:
    folder = tmp_path_factory.mktemp("rows")
    shapes = {
        "array": rows,
        "member": {"version": "1", "data": rows, "tags": ["x", 1]} if rows else [],
        "keyed": {f'"{number}\\': row for number, row in enumerate(rows)} if len(rows) > 1 else [],
    }
    for shape, value in shapes.items():
        path = folder / "a.json"
        path.write_text(json.dumps(value, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(json_array, "_BLOCK_BYTES", part)
            source = open_rows(path)
            found = [plain(row.fields()) for row in all_rows(source)]
            assert len(source.estimate()) == len(found)
        names = [row.pop("id") for row in found] if shape == "keyed" else []
        assert found == (rows if value else [])
        assert names == (list(value) if shape == "keyed" else [])


@pytest.mark.parametrize("part", [50, 2**20])
def test_a_faulty_row_does_not_hide_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    monkeypatch.setattr(json_array, "_BLOCK_BYTES", part)
    rows = [
        '{"q": "1"}',
        f'{{"q": "{SECRET}}}',
        '{"q": "3"}',
        '{"q": 4}}',
        '["x"]',
        '{"q": "6", "q": "7"}',
        '{"q": "7"} {"q": "8"}',
        "",
        '{"q": "9\\u0020\\""}',
        '{"q": ' + "[" * 5_000 + "]" * 5_000 + "}",
        f"{SECRET}",
    ]
    path = written(tmp_path, "[\n" + ",\n".join(rows) + "\n]")
    assert read(path) == [
        ("a.json:2", {"q": "1"}),
        ("a.json:3", "not JSON"),
        ("a.json:4", {"q": "3"}),
        ("a.json:5", "more than one JSON value without a comma between them"),
        ("a.json:6", "not a JSON object"),
        ("a.json:7", "the same key twice in one object"),
        ("a.json:8", "more than one JSON value without a comma between them"),
        ("a.json:9", "no row: a comma too many"),
        ("a.json:10", {"q": '9 "'}),
        ("a.json:11", "nested too deeply"),
        ("a.json:12", "not JSON"),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[]", []),
        ("[ \n ]\n\n", []),
        ('[{"q": "x"},]', [("a.json:1", {"q": "x"}), ("a.json:1 (row 2 of this line)", "no row: a comma too many")]),
        ('[{"q": "x"}, {"q', [("a.json:1", {"q": "x"}), ("a.json:1 (row 2 of this line)", json_array._TORN)]),
        ('[{"q": "x"}\n', [("a.json:1", json_array._TORN)]),
        ('[\n{"q": "x"},\n', [("a.json:2", {"q": "x"}), ("a.json:3", json_array._TORN)]),
        (
            '\ufeff\n [{"q":\n "x"}, {"q": "y"},\n\n{"q": "z"}]',
            [(place, {"q": text}) for place, text in zip(("a.json:2", "a.json:3", "a.json:5"), "xyz", strict=True)],
        ),
        (
            '{"a": {"q": "x"}, "b": {"q": "y", "id": 7}}',
            [("a.json:1", {"id": "a", "q": "x"}), ("a.json:1 (row 2 of this line)", {"id": 7, "q": "y"})],
        ),
        ('{"n": 2, "rows": [\n{"q": "x"},\n{"q": "y"}\n]}', [("a.json:2", {"q": "x"}), ("a.json:3", {"q": "y"})]),
        (
            '{\n "a": {\n "q": "x"\n },\n {"q": "y"}\n}',
            [("a.json:2", {"id": "a", "q": "x"}), ("a.json:5", "not JSON: no key before the row")],
        ),
    ],
)
def test_places_and_ends(tmp_path: Path, text: str, expected: object) -> None:
    assert read(written(tmp_path, text)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"q": "x"}]\n[{"q": "y"}]' + " " * 5, r"not a JSON object"),
        ('[\n{"q": "x"}\n]\n[\n{"q": "y"}]', r"a\.json:3: text follows the bracket that ends the rows"),
        ('{"rows": [\n{"q": "x"}], "more": "y', r"a\.json:2: what follows the array of rows is not the rest"),
    ],
)
def test_text_behind_the_rows(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises((DataError, BadRow), match=message):
        [row.fields() for row in all_rows(open_rows(path))]


def test_a_second_array_far_behind_the_first_is_seen(tmp_path: Path) -> None:
    rows = [{"q": "x" * 1000}] * 100
    path = written(tmp_path, json.dumps({"train": rows, "n": 1, "test": rows}))
    with pytest.raises(DataError, match="several arrays in it, `train`, `test`: which of them are the rows"):
        list(all_rows(open_rows(path)))


@pytest.mark.parametrize(
    "text",
    [
        '{"messages": [{"role": "user", "content": "x"}]}',
        '{"prompt": {"text": "x"}, "gold": {"text": "y"}}',
        '{"question": "x", "options": [{"key": "A"}], "answer": "A"}',
        '{"id": 1, "data": {"text": "x"}, "annotations": [{"result": []}]}',
        '{"data": {"q": "x"}}',
        '{"q": "x"}\n{"q": "y"}',
    ],
)
def test_one_row_is_not_taken_for_a_file_of_rows(tmp_path: Path, text: str) -> None:
    rows = [fields for _, fields in read(written(tmp_path, text))]
    assert rows == [json.loads(line) for line in text.splitlines()]


def test_little_memory_and_a_row_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_array, "MAX_LINE_BYTES", 2**20)
    path = tmp_path / "a.json"
    row = json.dumps({"q": "x" * 1000})
    with path.open("w") as file:
        file.write("[")
        file.writelines(f"{row},\n" for _ in range(20_000))
        file.write('{"q": "' + "y" * 2**22 + '"},{"q": "z"}]')
    tracemalloc.start()
    bad = [
        (source.place(number), str(content))
        for source in [open_rows(path)]
        for number, content in all_rows(source)
        if isinstance(content, BadRow) or content == {"q": "z"}
    ]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert bad == [
        (f"{path}:20001", "row longer than 1 MiB, or without its closing quote or bracket"),
        (f"{path}:20001 (row 2 of this line)", "{'q': 'z'}"),
    ]
    assert peak < 24 * 2**20
    monkeypatch.setattr(json_array, "MAX_PASSED_OVER_BYTES", 2**21)
    with pytest.raises(DataError, match=r"a\.json:20001: the row that begins here is longer"):
        list(all_rows(open_rows(path)))


def test_what_unpacks_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gzip

    monkeypatch.setattr(streams, "_RATIO_FROM_BYTES", 2**20)
    path = written(tmp_path, gzip.compress(b'[{"q": "x"}' + b',{"q": "x"}' * 120_000 + b"]"))
    with pytest.raises(DataError, match="unpacks to more than 200 times its size"):
        list(all_rows(open_rows(path)))
