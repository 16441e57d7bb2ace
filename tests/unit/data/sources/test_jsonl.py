from __future__ import annotations

import gzip
import json
import os
import tracemalloc
from pathlib import Path

import pytest

from medsft.core.data.sources import jsonl, streams
from medsft.core.data.sources.bad_rows import BadRows
from medsft.core.data.sources.base import BadRow, all_rows
from medsft.core.data.sources.columns import Keys
from medsft.core.data.sources.conversation import Conversation, question_and_answer
from medsft.core.data.sources.json_object import read_object
from medsft.core.data.sources.jsonl import JsonlSource
from medsft.core.data.sources.open import open_rows
from medsft.core.data.sources.question_answer import question_answer
from medsft.core.data.sources.read import propose_keys, read_conversations
from medsft.core.data.sources.row_format import RowFormat
from medsft.errors import DataError

KEYS = Keys(question="q", answer="a", system="s")
SECRET = "Mrs Smith"


def parse_row(raw: bytes, keys: Keys) -> Conversation:
    return question_answer(read_object(raw), keys)


def read(path: Path) -> list[tuple[int, object]]:
    """The number of each row of a file, and its fields or why it has none."""
    rows = all_rows(open_rows(path))
    return [(row.number, str(row.content) if isinstance(row.content, BadRow) else row.content) for row in rows]


def _raw(**row: object) -> bytes:
    return json.dumps({"q": SECRET, "a": SECRET, "s": SECRET} | row).encode()


def test_reads_the_three_texts_as_they_are() -> None:
    raw = json.dumps({"q": " two  spaces\n", "a": "é🙂", "s": " ", "other": 1}).encode()
    assert parse_row(raw, KEYS) == question_and_answer(question=" two  spaces\n", answer="é🙂", system=" ")
    assert parse_row(raw, Keys(question="q", answer="a")) == question_and_answer(" two  spaces\n", "é🙂")


def test_what_only_the_slower_parser_takes_is_read_too() -> None:
    assert parse_row(b'{"q": "x", "a": "y\\":", "score": NaN}', Keys(question="q", answer="a"))[-1].content == 'y":'


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (f'{{"q": "{SECRET}'.encode(), "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (f'["{SECRET}"]'.encode(), "not a JSON object"),
        (json.dumps({"q": SECRET, "s": ""}).encode(), "no key 'a'"),
        (_raw(a=None), "'a' is null, not a string"),
        (_raw(q=[SECRET]), "'q' is a list, not a string"),
        (_raw(a=" \n"), "empty answer under 'a'"),
        (_raw(q=""), "empty question under 'q'"),
        (_raw().replace(b"Smith", b"Sm\xefth"), "broken UTF-8"),
        (_raw(a="half a pair \ud83d"), "half of a surrogate pair (an escape from \\ud800 to \\udfff) under 'a'"),
        (f'{{"q": "{SECRET}", "a": "1", "s": "", "a": "2"}}'.encode(), "the same key twice in one object"),
        (f'{{"q": "{SECRET}", "a" : "1", "s": "", "a": "2"}}'.encode(), "the same key twice in one object"),
        (f'{{"q": "{SECRET}", "a"\t: "1", "a":"2", "s": "\\":"}}'.encode(), "the same key twice in one object"),
        (_raw(a={"text": SECRET}), "'a' is an object, not a string"),
        (_raw(a=True), "'a' is true or false, not a string"),
        (f"{{'q': '{SECRET}', 'a': 'x'}}".encode(), "not JSON: single quotes, as Python writes its dicts"),
        (_raw() + b",", "not JSON: a comma follows the object, as in a JSON array"),
        (_raw() + b" " + _raw(), "more than one JSON value in the line"),
        (_raw() + b"\r" + _raw(), "more than one JSON value in the line (the line ends are CR alone, as on old Macs)"),
        (b'{"x": {"y": 1, "y": 2}, "q": "1", "a": "2", "s": {"t": "1", "t": "2"}}', "'s' is an object, not a string"),
    ],
)
def test_every_kind_of_bad_row_is_named_without_its_text(raw: bytes, reason: str) -> None:
    with pytest.raises(BadRow) as caught:
        parse_row(raw, KEYS)
    assert str(caught.value) == reason


def test_lines_carry_their_number_and_blank_ones_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{}\n\n  \r\n{"a": 1}\nlast without newline')
    assert read(path) == [(1, {}), (4, {"a": 1}), (5, "not JSON")]
    assert open_rows(path).place(4) == f"{path}:4"


def test_gzip_is_recognized_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "named_plainly.jsonl"
    path.write_bytes(gzip.compress(b'{}\n{"a": 1}\n'))
    assert read(path) == [(1, {}), (2, {"a": 1})]


def test_damaged_gzip_and_missing_files_are_data_errors(tmp_path: Path) -> None:
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(b"{}\n" * 10_000)[:-20])
    with pytest.raises(DataError, match=r"cut\.jsonl\.gz: the gzip data ends early"):
        read(cut)
    with pytest.raises(DataError, match=r"no\.jsonl: cannot be read"):
        read(tmp_path / "no.jsonl")


def test_a_huge_line_is_passed_over_in_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 2**20)
    path = tmp_path / "a.jsonl"
    with path.open("wb") as stream:
        for _ in range(100):
            stream.write(b"x" * 2**20)
        stream.write(b"\n{}\n" + b"y" * 2**20 + b"\n" + b"z" * (2**20 + 1))
    tracemalloc.start()
    found = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [(1, "line longer than 1 MiB"), (2, {}), (3, "not JSON"), (4, "line longer than 1 MiB")]
    assert peak < 16 * 2**20


@pytest.mark.parametrize("zipped", [False, True])
def test_a_line_without_end_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool) -> None:
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 2**20)
    monkeypatch.setattr(jsonl, "MAX_PASSED_OVER_BYTES", 2**22)
    path = tmp_path / "a.jsonl"
    content = b'{"q": "x", "a": "y"}\n\n{"q": "' + b"x" * 2**24
    path.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(DataError, match=r"a\.jsonl:3: this line is longer"):
        read(path)


@pytest.mark.parametrize("line", [b"\n", b"{}\n", b'{"q": "x", "a": "y"}\n'])
def test_what_unpacks_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: bytes) -> None:
    monkeypatch.setattr(streams, "_RATIO_FROM_BYTES", 2**20)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(line * (2**23 // len(line))))
    with pytest.raises(DataError, match=r"unpacks to more than 200 times its size"):
        read(path)
    with pytest.raises(DataError, match=r"unpacks to more than 200 times its size"):
        JsonlSource(path).estimate()


def test_folders_pipes_and_devices_are_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    cases = (tmp_path, "is a folder"), (tmp_path / "fifo", "is a pipe or a device"), (Path("/dev/zero"), "a device")
    for path, what in cases:
        with pytest.raises(DataError, match=what):
            read(path)
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / ("x" * 300))
    with pytest.raises(DataError, match="NUL"):
        read(Path("a\0b"))


@pytest.mark.parametrize(
    "raw",
    [
        b'{"q": "x", "a": "y", "n": ' + b"1" * 10_000 + b"}",
        b'{"q": "x", "a": "y", "n": [NaN, Infinity, 1e999]}',
        b'{"q": "x", "a": "y", "n": ' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}",
    ],
)
def test_odd_numbers_and_depths_beside_the_texts_do_no_harm(raw: bytes) -> None:
    assert parse_row(raw, Keys(question="q", answer="a")) == question_and_answer(question="x", answer="y")


def test_keys_in_messages_are_few_short_and_without_control_characters(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"\x1b[31m\u202eab\n" * 30: "x", **{f"k{n}": "v" for n in range(100)}}) + "\n")
    with pytest.raises(DataError) as caught:
        list(read_conversations([path], RowFormat(keys=KEYS)))
    message = str(caught.value)
    assert not set("\x1b\u202e") & set(message)
    assert "`k10` and 89 more" in message
    assert len(message) < 800


def test_the_error_names_the_first_twenty_and_counts_all() -> None:
    bad = BadRows()
    for number in range(1, 31):
        part = BadRows()
        part.add(f"{'ab'[number % 2]}.jsonl:{number}", BadRow("not JSON"))
        bad.merge(part)
    message = str(bad.error())
    assert message.startswith("30 rows cannot be used")
    assert "b.jsonl:1: not JSON\na.jsonl:2: not JSON\n" in message
    assert "a.jsonl:20: not JSON\n... and 10 more" in message
    assert "b.jsonl:21" not in message
    assert "--bad_rows skip" in message


def test_conversations_of_several_files_come_in_order_and_bad_rows_stop_or_are_left_out(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    first.write_text('{"q": "1", "a": "x"}\n')
    second.write_text('{"q": "2", "a": ""}\n{"q": "3", "a": "x"}\n')
    rows = RowFormat(keys=Keys(question="q", answer="a"))
    assert [user.content for user, _ in read_conversations([second, first], rows, skip_bad=True)] == ["3", "1"]
    with pytest.raises(DataError, match=r"2:1: empty answer"):
        list(read_conversations([first, second], rows))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "x", "gold": "y"}, ("prompt", "gold", None)),
        ({"id": "7", "Instruction": "x", "output": "y", "system": "z"}, ("Instruction", "output", "system")),
        ({"fall": "x", "completion": "y"}, (None, "completion", None)),
        ({"prompt": 1, "question": "x", "answer": "y"}, ("question", "answer", None)),
    ],
)
def test_keys_are_proposed_by_their_usual_names(
    tmp_path: Path, row: dict[str, object], expected: tuple[str | None, ...]
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("broken\n" + json.dumps(row) + "\n" + json.dumps(row | {"late": "x"}) + "\n")
    proposal = propose_keys(path)
    assert (proposal.question, proposal.answer, proposal.system) == expected
    assert proposal.keys == tuple(key for key, value in row.items() if isinstance(value, str))
