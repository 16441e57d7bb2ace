"""CSV as people have it: rows are those that Python's own reader gives, and what is wrong with a row is said of it alone."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsft.core.data.sources import csv_rows
from medsft.core.data.sources.base import BadRow, all_rows
from medsft.core.data.sources.columns import Keys
from medsft.core.data.sources.csv_rows import CsvSource
from medsft.core.data.sources.open import open_rows
from medsft.core.data.sources.read import read_conversations
from medsft.core.data.sources.row_format import RowFormat
from medsft.errors import DataError

CELLS = st.text(st.sampled_from("ab\",;\t\r\n 'é🙂|"), max_size=8)


def read(path: Path) -> list[tuple[int, object]]:
    rows = all_rows(open_rows(path))
    return [(row.number, str(row.content) if isinstance(row.content, BadRow) else row.content) for row in rows]


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "rows"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=6),
    delimiter=st.sampled_from(",;\t|"),
    line_end=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    part=st.integers(1, 30),
)
def test_rows_are_those_that_were_written(tmp_path_factory, rows, delimiter, line_end, encoding, part) -> None:
    path = tmp_path_factory.mktemp("rows") / "a"
    with path.open("w", newline="", encoding=encoding) as file:
        # QUOTE_MINIMAL leaves a CR alone without quotes where lines do not end with one.
        writer = csv.writer(file, delimiter=delimiter, lineterminator=line_end, quoting=csv.QUOTE_ALL)
        if line_end == "\r\n":
            writer = csv.writer(file, delimiter=delimiter, lineterminator=line_end)
        writer.writerows([("prompt", "gold"), *rows])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_rows, "_BLOCK_BYTES", part)
        source = open_rows(path)
        assert isinstance(source, CsvSource)
        found = [row.fields() for row in all_rows(source)]
        assert len(source.estimate()) <= len(rows)
    assert found == [dict(zip(("prompt", "gold"), row, strict=True)) for row in rows if any(row)]


@settings(max_examples=50, deadline=None)
@given(text=st.text(st.sampled_from('a",\n'), max_size=40), part=st.integers(1, 20))
def test_odd_quotes_are_read_alike_wherever_the_text_is_cut(tmp_path_factory, text, part) -> None:
    path = written(tmp_path_factory.mktemp("rows"), "prompt,gold\nx,y\n" + text)
    expected = read(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_rows, "_BLOCK_BYTES", part)
        assert read(path) == expected
    try:
        strict = list(csv.reader(io.StringIO(text, newline="\n"), strict=True))
    except csv.Error:
        return
    found = [row for _, row in expected[1:] if isinstance(row, dict)]
    rows = [dict(zip(("prompt", "gold"), cells, strict=True)) for cells in strict if len(cells) == 2 and any(cells)]
    assert rows == found or any(len(cells) > 2 for cells in strict)


def test_what_is_wrong_with_a_row_is_said_of_it_alone(tmp_path: Path) -> None:
    rows = [
        "prompt;gold;note",
        "1;a;",
        "2;b",
        "3;c;d;e",
        "4;d;e;;",
        ";;",
        "",
        '"5"x;e;f',
        "6;5\" tall;'",
        '"7 ""a""\n\nb";;z',
        "8;\ra;b",
        "9;i;j",
        '10;"k;l',
        "11;l;m",
    ]
    path = written(tmp_path, "\n".join(rows).encode().replace(b"9;i;j", b"9;\xff;j\n9;i;j"))
    assert read(path) == [
        (2, {"prompt": "1", "gold": "a", "note": ""}),
        (3, "2 cells in 3 columns"),
        (4, "4 cells in 3 columns"),
        (5, {"prompt": "4", "gold": "d", "note": "e"}),
        (8, "text follows the quote that closes a cell (a quote inside a cell is written twice)"),
        (9, {"prompt": "6", "gold": '5" tall', "note": "'"}),
        (10, {"prompt": '7 "a"\n\nb', "gold": "", "note": "z"}),
        (13, "CR alone inside the row (the line ends of old Macs)"),
        (14, "broken UTF-8"),
        (15, {"prompt": "9", "gold": "i", "note": "j"}),
        (16, "a quote is not closed, from here to the end of the file (2 lines)"),
    ]


@pytest.mark.parametrize(
    ("text", "columns", "rows"),
    [
        ("prompt,gold\n", ("prompt", "gold"), []),
        ("sep=;\nprompt;gold\nx, y;z\n", ("prompt", "gold"), [(3, {"prompt": "x, y", "gold": "z"})]),
        (",prompt,gold\n0,x,y\n", ("column 1", "prompt", "gold"), [(2, {"column 1": "0", "prompt": "x", "gold": "y"})]),
        ('prompt, gold\n"x", "y"\n', ("prompt", "gold"), [(2, {"prompt": "x", "gold": "y"})]),
        ("\n\nQ\tA\nx, y, z\tw\n", ("Q", "A"), [(4, {"Q": "x, y, z", "A": "w"})]),
        ('"a\nb";gold\n1;2\n', None, None),
        ("prompt,gold\na, b, c\nd, e, f\n", ("prompt", "gold"), [(2, "3 cells in 2 columns"), (3, "3 cells in 2 columns")]),
    ],
)
def test_columns(tmp_path: Path, text: str, columns: tuple[str, ...] | None, rows: list[tuple[int, object]]) -> None:
    path = written(tmp_path, text)
    if columns is None:
        with pytest.raises(DataError, match="its first row does not name the columns"):
            open_rows(path)
        return
    source = open_rows(path)
    assert isinstance(source, CsvSource)
    assert (source.columns, read(path)) == (columns, rows)


def test_a_quote_that_never_closes_takes_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_rows, "MAX_LINE_BYTES", 2**21)
    path = written(tmp_path, 'prompt,gold\nx,y\nz,"w\n' + "x,y\n" * 2**20)
    with pytest.raises(DataError, match=r"rows:3: the row that begins here is longer than 2 MiB"):
        list(all_rows(open_rows(path)))


def test_a_cell_longer_than_pythons_own_limit(tmp_path: Path) -> None:
    path = written(tmp_path, f'prompt,gold\n"{"x" * 2**20}",y\n')
    assert [len(str(row["prompt"])) for _, row in read(path) if isinstance(row, dict)] == [2**20]


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [
        ("a.csv", 'text\n"Fever, in children"\nx\n', [(2, {"text": "Fever, in children"}), (3, {"text": "x"})]),
        ("a.CSV", "Question\nx; y\tz\n", [(2, {"Question": "x; y\tz"})]),
        ("a.tsv", 'text\nx, y\n"two\nlines"\n', [(2, {"text": "x, y"}), (3, {"text": "two\nlines"})]),
        ("a.csv", "text\nx, y\n", [(2, "2 cells in 1 column")]),
        ("a.csv", "text\n", []),
        ("a.txt", "text\nx\n", None),
        ("a.csv", "Fever in children is to be treated.\nx\n", None),
        ("a.csv", "John Smith 1957-03-02\nJane Doe 1960-01-02\n", None),
        ("a.csv", "Smith, John 1957-03-02\nDoe, Jane 1960-01-02\n", None),
        ("a.csv", "Smith\nDoe\n", None),
    ],
)
def test_a_table_of_one_column_is_told_by_its_name(tmp_path: Path, name: str, text: str, rows: object) -> None:
    path = tmp_path / name
    path.write_text(text)
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    for file in (path, packed):
        if rows is None:
            with pytest.raises(DataError) as error:
                open_rows(file)
            said = f"{error.value} {error.value.hint}"
            assert not any(word.strip(",") in said for word in text.split() if not word.islower())
        else:
            assert read(file) == rows


def test_an_empty_cell_is_said_to_be_empty(tmp_path: Path) -> None:
    path = written(tmp_path, "prompt,gold,system\nq,a,\n,a,\nq,,s\n,,\n")
    assert read(path)[0][1] == {"prompt": "q", "gold": "a", "system": ""}
    with pytest.raises(DataError, match=r"rows:3: empty question under 'prompt'"):
        list(read_conversations([path], RowFormat()))
    found = list(read_conversations([path], RowFormat(keys=Keys(system="system")), skip_bad=True))
    assert [len(conversation) for conversation in found] == [2]
