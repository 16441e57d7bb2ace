"""Shapes of files that people have (tests/cases/rows), each with what becomes of it: read as it is, or named with a remedy."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kept import ROW_CASES
from row_files import PACKERS

from medsft.core.data.dataset.dataset import TokenizedDataset
from medsft.core.data.dataset.findings import overlap, survey
from medsft.core.data.dataset.spec import TokenizeSpec
from medsft.core.data.dataset.tokenize import tokenize
from medsft.core.data.dataset.write import refuse_rows
from medsft.core.data.sources.base import all_rows
from medsft.core.data.sources.columns import Keys
from medsft.core.data.sources.open import open_rows
from medsft.core.data.sources.read import propose_keys, read_conversations
from medsft.core.data.sources.row_format import RowFormat
from medsft.core.data.tokenizers.template import Role
from medsft.errors import DataError


def case(start: str) -> Path:
    (path,) = ROW_CASES.glob(f"{start}_*")
    return path


def qa(**keys: str) -> RowFormat:
    given: dict[str, Any] = dict(keys)
    return RowFormat(keys=Keys(**given))


def read(path: Path, **keys: str) -> list[tuple[str, str]]:
    return [(user.content, answer.content) for *_, user, answer in read_conversations([path], qa(**keys))]


def look(path: Path, **keys: str) -> None:
    """What a plan does before anything is tokenized."""
    seen = survey([path], qa(**keys))
    refuse_rows(seen.bad, seen.tally, [path], "error")


def refusal(path: Path, **keys: str) -> str:
    """The message for a file. Tokenizing, and a look at the first rows, say the same."""
    with pytest.raises(DataError) as caught:
        read(path, **keys)
    with pytest.raises(DataError) as looked:
        look(path, **keys)
    assert looked.value.exit_code == caught.value.exit_code == 3
    return str(looked.value)


@pytest.fixture
def made(tmp_path: Path, hf_folder: Path):
    def make(*starts: str, name: str = "set", **keys: str) -> TokenizedDataset:
        data = tuple(map(case, starts))
        return tokenize(TokenizeSpec(data=data, tokenizer=hf_folder, rows=qa(**keys)), tmp_path / name)

    return make


SCURVY = ("Which vitamin lack gives scurvy?", "Vitamin C.")
COUGH = "You are a doctor, answer the patient."
READ = [
    ("d01", {"question": "instruction", "answer": "output"}, [(COUGH, "Drink, rest, come if fever.")] * 4, "2 7 12 17"),
    ("d02", {}, [SCURVY] * 4, "1,1 (row 2 of this line),1 (row 3 of this line),1 (row 4 of this line)"),
    ("d30", {}, [("a", "b"), ("c", "d"), ("e", "f")], "2 3 4"),
    (
        "d08",
        {"question": "QUESTION", "answer": "LONG_ANSWER"},
        [("Does X help?", "It does."), ("Does Y help?", "No.")],
        "2 11",
    ),
    ("d10", {}, [("Which vitamin?", "Vitamin C"), ("Two\r\nlines?", "Yes")], "2 3"),
    ("d11", {}, [(f"{SCURVY[0]} ({number})", SCURVY[1]) for number in range(6)], "1 2 3 4 5 6"),
]


@pytest.mark.parametrize("pack", [bytes, *PACKERS.values()])
@pytest.mark.parametrize(("start", "keys", "expected", "lines"), READ)
def test_d01_to_d11_and_d30_are_read_as_they_are_and_packed(
    tmp_path: Path,
    start: str,
    keys: dict[str, str],
    expected: list[tuple[str, str]],
    lines: str,
    pack: Callable[[bytes], bytes],
) -> None:
    path = tmp_path / "rows"  # by what is in it, whatever its name
    path.write_bytes(pack(case(start).read_bytes()))
    assert read(path, **keys) == expected
    source = open_rows(path)
    places = [source.place(row.number) for row in all_rows(source)]
    assert places == [f"{path}:{line}" for line in (lines.split(",") if "," in lines else lines.split())]
    assert len(source.estimate()) == len(expected)


def test_d08_the_key_of_a_row_is_its_id() -> None:
    assert [row.fields()["id"] for row in all_rows(open_rows(case("d08")))] == ["111", "112"]


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.jsonl", "rows"])
def test_what_is_packed_twice_is_unpacked_by_the_commands_whatever_its_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    packed = gzip.compress(gzip.compress(b'{"prompt": "q", "gold": "a"}\n'))
    path.write_bytes(packed)
    message = refusal(path)
    assert message.startswith(f"{path} is packed twice")
    _, *commands = message.split("\n    ")[1:]
    subprocess.run("\n".join(commands), shell=True, check=True, executable="/bin/sh")
    assert path.read_bytes() == packed
    assert read(tmp_path / "rows-rows.jsonl") == [("q", "a")]


@pytest.mark.parametrize("zipped", [False, True])
def test_the_command_for_objects_over_several_lines_writes_each_on_one(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "my rows.json"
    content = b'{\n "prompt": "x",\n "gold": "y"\n}\n{\n "prompt": "z",\n "gold": "w"\n}'
    path.write_bytes(gzip.compress(content) if zipped else content)
    message = refusal(path)
    assert message.startswith(f"{path} is JSON spread over several lines, not JSONL, a JSON array, CSV or Parquet")
    assert message.splitlines()[-1].startswith("    jq -c . ")
    assert ("gunzip -c <" in message) == zipped


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (case("d20").read_bytes(), "a Parquet file that ends early or is damaged"),
        (b"ARROW1\0\0", "an Arrow or Feather file that ends early or is damaged"),
        (b"FEA1\0\0", "a Feather table of the first version"),
        (gzip.compress(b"PAR1" * 10, mtime=0), "a Parquet file packed once more"),
        (b"PK\x03\x04\x14", "a zip archive or an Excel workbook"),
        (b"SQLite format 3\0", "an SQLite database"),
        (b"%PDF-1.7", "a PDF"),
        (gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0), "packed twice, at last with gzip"),
        (b"<!DOCTYPE html><html>", "HTML or XML"),
        (b"Dear colleague,\n\nyou asked\nwhy\n", "plain text"),
        (b"\0" * 5000 + b"\n", "binary data"),
        (b'[checkpoints.tiny]\n7 = "base"\n', "plain text"),
        (
            b'{"train": [{"prompt": "x"}], "test": [{"prompt": "y"}]}',
            "one JSON object with several arrays in it, `train`, `test`",
        ),
        (
            b"Dear colleague of mine. Hello.\tWhy?\nOf course.\tYes!\n",
            "CSV with tabs, and its first row does not name",
        ),
        (b"gold,prompt,gold\n1,2,3\n", "CSV with commas, and several columns have the same name: `gold`"),
    ],
)
def test_files_are_recognized_by_what_is_in_them(tmp_path: Path, head: bytes, what: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(head)
    message = refusal(path)
    assert message.startswith(f"{path} is {what}")
    assert "colleague" not in message


def test_rows_that_git_did_not_fetch(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "a.jsonl: a pointer of Git LFS, not the file itself" in refusal(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    "content",
    [
        b'{"prompt": "x", "gold": "y", "score": NaN}\n',
        b'nonsense, with commas\n{"prompt": "x", "gold": "y"}\n',
        b'{"data": {"q": "x", "a": "y"}, "more": {"z": "w"}}\n',
        b'{"prompt": "cut\n{"prompt": "x", "gold": "y"}\n',
        b'["x"]\n["y"]\n',
        b"",
        b" \n\r\n",
    ],
)
def test_what_may_be_rows_is_read_row_by_row(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    assert len(list(all_rows(open_rows(path)))) == len([line for line in content.splitlines() if line.strip()])


def test_d03_the_text_column_that_is_not_read_is_named_and_instruction_comes_first(made) -> None:
    proposed = propose_keys(case("d03"))
    assert (proposed.question, proposed.answer) == ("instruction", "output")
    data = made("d03", question="instruction", answer="output")
    assert data.manifest.findings.unused_text == {"input": 2}
    assert data.manifest.remarks("--data") == [
        "--data: the text under these keys is not used: `input` (in 2 of 3 rows).",
    ]


@pytest.mark.parametrize(
    ("start", "key", "fits"),
    [("d04", "messages", "messages"), ("d05", "conversations", "sharegpt"), ("d03", "instruction", "alpaca")],
)
def test_rows_of_another_format_than_was_chosen_are_named_with_the_one_that_fits(start: str, key: str, fits: str) -> None:
    message = refusal(case(start))
    assert f"{case(start)}:1: no key 'prompt'" in message
    assert f"`{key}`" in message
    assert f"(these rows look like --format {fits})" in message


def test_d06_options_that_are_left_out_are_named(made) -> None:
    findings = made("d06", question="question", answer="answer").manifest.findings
    assert findings.unused_text == {"options": 3, "meta_info": 3, "answer_idx": 3}


def test_d07_the_keys_that_are_there_and_what_is_no_text() -> None:
    message = refusal(case("d07"))
    assert "no key 'prompt'" in message
    assert "`id`, `question`, `opa`, `opb`, `opc`, `opd`, `cop`" in message
    assert "(these rows look like --format mcq)" in message
    assert "scurvy" not in message
    assert "(these rows look like --question_key data.question --answer_key data.answer)" in refusal(case("d28"))
    assert "'cop' is a number, not a string" in refusal(case("d07"), question="question", answer="cop")


def test_d09_the_reasoning_that_is_not_read_is_named(made) -> None:
    findings = made("d09", question="Question", answer="Response").manifest.findings
    assert findings.unused_text == {"Complex_CoT": 3}


def test_d12_latin_1_is_refused_with_its_place() -> None:
    message = refusal(case("d12"))
    assert f"{case('d12')}:1: broken UTF-8" in message
    assert "save the file as UTF-8" in message


def test_d13_d14_byte_order_marks_are_no_text() -> None:
    assert [number for number in range(6) if f"({number})" in read(case("d13"))[number][0]] == list(range(6))
    assert [question[-3:] for question, _ in read(case("d14"))] == ["(0)", "(1)", "(2)"] * 2


def test_d15_half_of_a_surrogate_pair_is_named_as_such() -> None:
    message = refusal(case("d15"))
    assert f"{case('d15')}:1: half of a surrogate pair" in message
    assert "UTF-8" not in message


def test_d16_d17_texts_stay_as_they_are() -> None:
    assert read(case("d16")) == [("a\0b c\u2028d\u0085e", "x\0 y\u2029z")]
    first, second = read(case("d17"))
    assert "👩\u200d⚕️" in first[0]
    assert second == ("  leading and trailing  ", " \n yes \n")


def test_d18_absent_null_and_empty_system_messages_are_none(made) -> None:
    data = made("d18", system="system")
    assert [Role.SYSTEM in data.roles(number) for number in range(4)] == [True, False, False, False]
    assert len({data.tokens(number).tobytes() for number in (1, 2, 3)}) == 1
    assert data.manifest.findings.without_system == 3
    assert "3 of 4 rows have no system message" in "\n".join(data.manifest.remarks("--data"))
    with pytest.raises(DataError, match=r"no row has the key 'sytem'. The keys of the first row: `prompt`, `gold`"):
        made("d18", name="slip", system="sytem")


def test_d19_d28_nested_keys_are_read_and_named(made) -> None:
    message = refusal(case("d19"))
    assert "`data.text`" in message
    assert "Label Studio" in message
    assert "'annotations' is a list, not a string" in refusal(case("d19"), question="data.text", answer="annotations")
    assert "`data.question`, `data.answer`" in refusal(case("d28"))
    proposed = propose_keys(case("d28"))
    assert (proposed.question, proposed.answer) == ("data.question", "data.answer")
    data = made("d28", question="data.question", answer="data.answer")
    assert data.num_documents == 2
    assert data.manifest.findings.unused_text == {}
    half = made("d28", name="half", question="data.question", answer="data.question")
    assert half.manifest.findings.unused_text == {"data.answer": 2}


def test_a_key_with_a_dot_in_its_own_name_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a.q": "outer", "a": {"q": "inner", "r": {"s": "deep"}}}\n')
    assert read(path, question="a.q", answer="a.r.s") == [("outer", "deep")]
    assert "no key 'a.r.t'" in refusal(path, question="a.q", answer="a.r.t")
    path.write_text('{"a": {"q": "1", "q": "2"}, "b": "x"}\n')
    assert "the same key twice" in refusal(path, question="a.q", answer="b")


def test_d21_repeated_rows_are_counted(made) -> None:
    data = made("d21")
    assert (data.num_documents, data.manifest.findings.repeated) == (51, 49)
    assert data.manifest.remarks("--data") == ["--data: 49 of 51 rows repeat an earlier one."]


def test_d22_a_few_rows_are_a_set(made) -> None:
    assert made("d22").num_documents == 3


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        ("d23", "no row that can be used"),
        ("d24", "no row that can be used"),
        ("d25", ":1: 'gold' is a number, not a string"),
        ("d26", ":1: more than one JSON value in the line (the line ends are CR alone, as on old Macs)"),
        ("d29", ":1: 'gold' is a list, not a string"),
    ],
)
def test_d23_to_d29_what_cannot_be_used_is_refused_with_its_place(made, start: str, reason: str) -> None:
    with pytest.raises(DataError, match=re.escape(reason)):
        made(start)
    with pytest.raises(DataError, match=re.escape(reason)):
        look(case(start))


def test_d27_rows_of_both_sets_are_counted(made) -> None:
    train, val = made("d21", name="train"), made("d27", name="val")
    assert overlap(train.row_hashes, val.row_hashes) == val.num_documents == 1
    assert overlap(made("d22", name="other").row_hashes, val.row_hashes) == 0
    assert overlap(None, val.row_hashes) == 0


def test_the_same_file_twice_is_said(made) -> None:
    data = made("d22", "d22")
    assert data.manifest.findings.repeated == 3
    assert f"--data: {case('d22')} is given twice." in data.manifest.remarks("--data")


def test_only_bad_rows_are_an_error_that_names_them_under_skip_too(tmp_path: Path, hf_folder: Path) -> None:
    spec = TokenizeSpec(data=(case("d06"),), tokenizer=hf_folder, bad_rows="skip")
    with pytest.raises(DataError, match=r"3 rows cannot be used"):
        tokenize(spec, tmp_path / "x")


def test_a_set_of_before_has_no_findings_and_is_used(made) -> None:

    data = made("d22")
    record = json.loads((data.folder / "manifest.json").read_text())
    del record["findings"]
    (data.folder / "manifest.json").write_text(json.dumps(record))
    (data.folder / "set-rows.npy").unlink()
    old = made("d22")
    assert (old.manifest.findings, old.row_hashes, old.manifest.remarks("--data")) == (None, None, [])
    assert old.fingerprint == data.fingerprint
