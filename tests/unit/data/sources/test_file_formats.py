"""A format for each file: told file by file, kept in the recipe, and said."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import medsft
from medsft.core.config.row_options import USED_BY
from medsft.core.data.sources import recognize as module
from medsft.core.data.sources.columns import Keys
from medsft.core.data.sources.read import read_conversations
from medsft.core.data.sources.recognize import RecognizedFiles, recognize
from medsft.core.data.sources.row_format import RowFormat, formats_from_json, formats_to_json, one_or_each
from medsft.core.data.sources.row_keys import differences_from, unused_options
from medsft.core.data.sources.row_looks import RowOptions
from medsft.errors import DataError

Row = Mapping[str, Any]
QA = {"prompt": "q", "gold": "a"}
USUAL = {"question": "q", "answer": "a"}
CHAT = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
SHAREGPT = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
TEXT = {"text": "t"}
FROM_0 = {"question": "q", "choices": ["x", "y", "z"], "answer": 0}
FROM_1 = {"question": "q", "choices": ["x", "y", "z"], "answer": 3}
UNCLEAR = {"question": "q", "choices": ["x", "y", "z"], "answer": 1}


def write(folder: Path, **files: Row | list[Row]) -> list[Path]:
    paths = []
    for name, rows in files.items():
        paths.append(folder / f"{name}.jsonl")
        listed = rows if isinstance(rows, list) else [rows]
        paths[-1].write_text("".join(json.dumps(row) + "\n" for row in listed))
    return paths


def options(chosen: str = "auto", **given: Any) -> RowOptions:
    return RowOptions.of(chosen, dict.fromkeys(USED_BY) | given)


def names(found: RecognizedFiles) -> list[str]:
    return [one.rows.name for one in found.each]


def test_each_file_has_its_format_and_its_reason(tmp_path: Path) -> None:
    files = write(tmp_path, a=QA, b=CHAT, c=TEXT, d=[QA, QA], e=SHAREGPT)
    found = recognize(files)
    assert names(found) == ["qa", "messages", "text", "qa", "sharegpt"]
    assert found.sentences == (
        f"Rows of {files[0]} and {files[3]} are read as qa: question `prompt`, answer `gold` (they have `prompt` and `gold`).",
        f"Rows of {files[1]} are read as messages: messages `messages` (`messages` is a list of messages with a role).",
        f"Rows of {files[2]} are read as text: text `text` (they have `text`).",
        f"Rows of {files[4]} are read as sharegpt: messages `conversations` (`conversations` is a list of turns of ShareGPT).",
    )
    assert found.reason.startswith(f"{files[0]} and {files[3]}: they have `prompt` and `gold`; {files[1]}: ")
    assert found.rows_of([files[3], files[0]]) == RowFormat()
    assert names(recognize([files[2], files[0]])) == ["text", "qa"]
    said = [[message.role for message in row] for row in read_conversations(files, found.rows)]
    assert said == [["user", "assistant"]] * 2 + [["text"]] + [["user", "assistant"]] * 3
    rows = medsft.open_rows(files[:3])
    assert rows.rows == found.rows_of(files[:3])
    assert len(list(rows)) == 3


def test_rows_of_one_file_that_disagree_are_refused_among_others(tmp_path: Path) -> None:
    files = write(tmp_path, a=QA, b=[CHAT, TEXT])
    with pytest.raises(DataError, match=rf"not all of one format:\nmessages: {files[1]}:1\ntext: {files[1]}:2") as caught:
        recognize(files)
    assert caught.value.exit_code == 3
    assert "a file of their own" in str(caught.value.hint)


def test_an_explicit_format_is_that_of_all_files(tmp_path: Path) -> None:
    files = write(tmp_path, a=QA, b={**TEXT, **QA})
    assert recognize(files, options("text")).rows == RowFormat(name="text", keys=Keys(question="", answer="", text="text"))


def test_keys_are_those_of_all_files_of_a_format_unless_a_file_has_its_own(tmp_path: Path) -> None:
    ambiguous = {**USUAL, "response": "b"}
    same = recognize(write(tmp_path, a=ambiguous, b=USUAL, c=[]))
    assert same.rows == RowFormat(keys=Keys(question="question", answer="answer"))
    with_system = recognize(write(tmp_path, a=USUAL, b={**USUAL, "system": "s"}))
    assert with_system.rows == RowFormat(keys=Keys(question="question", answer="answer", system="system"))
    own = recognize(write(tmp_path, a=QA, b=USUAL, c={"query": "q", "response": "a"}))
    assert [(one.rows.keys.question, one.rows.keys.answer) for one in own.each] == [
        ("prompt", "gold"),
        ("question", "answer"),
        ("query", "response"),
    ]
    rows = [{"instruction": "i", name: "x", "output": "o"} for name in ("input", "context")]
    dolly = recognize(write(tmp_path, a=rows[0], b=rows[1]))
    assert [one.rows.keys.input for one in dolly.each] == ["input", "context"]


def test_a_file_of_no_format_is_named_as_it_was(tmp_path: Path) -> None:
    files = write(tmp_path, a=CHAT, b={"fall": "q", "befund": "a"})
    assert names(recognize(files)) == ["messages", "messages"]
    with pytest.raises(DataError, match=rf"{files[1]}:1: no key 'messages'"):
        list(read_conversations(files, recognize(files).rows))


def test_given_keys_count_for_the_files_of_the_formats_that_use_them(tmp_path: Path) -> None:
    files = write(tmp_path, a={"q": "q", "a": "a"}, b=CHAT, c={"body": "t"})
    found = recognize(files, options(question_key="q", answer_key="a", text_key="body"))
    assert names(found) == ["qa", "messages", "text"]
    assert found.each[0].rows.keys == Keys(question="q", answer="a")
    assert names(recognize(files[:2], options(question_key="q", answer_key="a"))) == ["qa", "messages"]
    assert names(recognize([files[1], *write(tmp_path, d=TEXT)], options(system_key="s"))) == ["messages", "text"]
    assert names(recognize([files[1], *write(tmp_path, d=QA)], options(role_map="x=user"))) == ["messages", "qa"]
    grouped = recognize(files, options(question_key="q", answer_key="a", text_key="body", group_key="g"))
    assert {one.rows.keys.group for one in grouped.each} == {"g"}


def test_a_given_key_that_no_file_uses_is_refused(tmp_path: Path) -> None:
    files = write(tmp_path, a=CHAT, b=TEXT)
    used = re.escape(f"(qa, alpaca, mcq):\n{files[0]}: messages\n{files[1]}: text")
    with pytest.raises(DataError, match=rf"--question_key: no file has rows .*{used}"):
        recognize(files, options(question_key="q"))
    with pytest.raises(DataError, match="--messages_key"):
        recognize(files[1:], options(messages_key="m", text_key="text"))


def test_each_file_counts_options_in_its_own_way(tmp_path: Path) -> None:
    found = recognize(write(tmp_path, a=[UNCLEAR, FROM_0], b=[UNCLEAR, FROM_1]))
    assert [one.rows.keys.first_option for one in found.each] == [0, 1]
    told = recognize(write(tmp_path, a=[UNCLEAR, FROM_0], b=[UNCLEAR]))
    assert isinstance(told.rows, RowFormat)
    assert told.rows.keys.first_option == 0
    with pytest.raises(DataError, match=r"c\.jsonl: the numbers under `answer` may count"):
        recognize(write(tmp_path, a=[FROM_0], b=[FROM_1], c=[UNCLEAR]))
    with pytest.raises(DataError, match=r"from 0 in .*a.jsonl:1 and from 1 in .*a.jsonl:2"):
        recognize(write(tmp_path, a=[FROM_0, FROM_1]))


ALPACA = {"instruction": "i", "output": "o"}
LETTER = {"question": "q", "choices": ["x", "y", "z"], "answer": "A"}
AMBIGUOUS = {**USUAL, "response": "b"}
SYSTEM = {"system": "s"}


@pytest.mark.parametrize(
    ("train", "val", "first_option"),
    [
        *((row | SYSTEM, row, None) for row in (USUAL, ALPACA, CHAT)),
        *((row, row | SYSTEM, None) for row in (USUAL, ALPACA, CHAT)),
        (USUAL | SYSTEM, AMBIGUOUS, None),
        (USUAL, QA, None),
        (LETTER, FROM_1, 1),
        (FROM_0, UNCLEAR, 0),
        (FROM_0, FROM_1, 1),
    ],
)
def test_a_set_that_is_validated_on_is_read_by_its_own_keys(
    tmp_path: Path, train: Row, val: Row, first_option: int | None
) -> None:
    paths = write(tmp_path, train=train, val=val)
    both = recognize(paths[:1], val=paths[1:])
    assert both.files == tuple(paths)
    assert both.rows_of(paths[:1]) == recognize(paths[:1]).rows
    systems = [one.rows.keys.system for one in both.each]
    assert systems == ["system" if "system" in row else None for row in (train, val)]
    assert both.each[1].rows.keys.first_option == first_option
    assert len(list(read_conversations(paths, both.rows))) == 2


def test_the_recipe_of_one_format_is_as_it_was_and_of_several_a_list() -> None:
    text = RowFormat(name="text", keys=Keys(question="", answer="", text="text"))
    assert one_or_each([RowFormat(), RowFormat()]) == RowFormat()
    assert formats_to_json(RowFormat()) == RowFormat().to_json()
    mixed = one_or_each([RowFormat(), text, RowFormat()])
    raw = json.loads(json.dumps(formats_to_json(mixed)))
    assert raw == {"rows": [RowFormat().to_json(), {"format": "text", "keys": {"text": "text"}}, RowFormat().to_json()]}
    assert formats_from_json(raw, 3) == mixed
    with pytest.raises(ValueError, match="each file"):
        formats_from_json(raw, 2)


def test_options_are_compared_with_how_rows_were_read() -> None:
    rows = (RowFormat(), RowFormat(name="messages", keys=Keys(question="", answer="", messages="messages")))
    assert differences_from(rows, options()) == []
    assert differences_from(rows, options(question_key="prompt", messages_key="messages", role_map="gpt=assistant")) == []
    assert differences_from(rows, options("qa")) == ["--format was messages, now qa"]
    other = options(answer_key="a", system_key="s", text_key="t")
    assert differences_from(rows, other) == ["--answer_key was gold, now a", "--system_key was not given, now s"]
    assert unused_options([RowFormat(), rows], other) == ["--text_key is given, and no rows were read as text"]
    assert unused_options([RowFormat(), RowFormat(name="text")], other) == []


def test_files_that_do_not_change_are_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, opened = write(tmp_path, a=QA, b=CHAT), []
    original = module.open_rows
    monkeypatch.setattr(module, "open_rows", lambda path: opened.append(path) or original(path))
    for path in files:
        os.utime(path, (1, 1))
    assert recognize(files) == recognize(files)
    assert opened == files
    recognize(files, options("qa"))
    assert len(opened) == 4
    write(tmp_path, b=TEXT)
    assert names(recognize(files)) == names(recognize(files)) == ["qa", "text"]


def test_messages_may_be_written_as_text(tmp_path: Path) -> None:
    table = tmp_path / "chat.csv"
    cell = json.dumps(CHAT["messages"]).replace('"', '""')
    table.write_text(f'id,messages\n1,"{cell}"\n')
    written = {"conversations": json.dumps(SHAREGPT["conversations"])}
    files = [table, *write(tmp_path, a=written)]
    found = recognize(files)
    assert names(found) == ["messages", "sharegpt"]
    assert [[m.content for m in row] for row in read_conversations(files, found.rows)] == [["q", "a"], ["q", "a"]]
    broken = {
        '[{"role": "user"': "that cannot be read: not JSON",
        '[{"role": "user", "role": "user"}]': "twice",
        '[{}], "x": [1]': "not JSON",
    }
    for text, why in broken.items():
        (path,) = write(tmp_path, bad={"messages": text})
        with pytest.raises(DataError, match=why):
            list(read_conversations([path], recognize([path], options("messages")).rows))
    assert names(recognize(write(tmp_path, both={**USUAL, "conversation": json.dumps(CHAT["messages"])}))) == ["qa"]
