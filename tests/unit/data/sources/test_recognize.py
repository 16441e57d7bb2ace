"""Which row format files have, and why: of the files that people have (tests/cases/rows), and of rows that disagree."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from kept import ROW_CASES

import medsft
from medsft.core.config.row_options import USED_BY, check_row_options
from medsft.core.data.sources.columns import Keys
from medsft.core.data.sources.conversation import Conversation
from medsft.core.data.sources.read import read_conversations
from medsft.core.data.sources.recognize import Recognized, recognize
from medsft.core.data.sources.row_format import RowFormat
from medsft.core.data.sources.row_looks import RowOptions
from medsft.errors import DataError

Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
TURNS = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
SCURVY = "Which vitamin lack gives scurvy?"


def options(chosen: str = "auto", **given: Any) -> RowOptions:
    return RowOptions.of(chosen, dict.fromkeys(USED_BY) | given)


def look(tmp_path: Path, *rows: Mapping[str, Any], chosen: str = "auto", **given: Any) -> Recognized:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return of_one(path, chosen, **given)


def of_one(path: Path, chosen: str = "auto", **given: Any) -> Recognized:
    (found,) = recognize([path], options(chosen, **given)).each
    return found


def said(path: Path, chosen: str = "auto", **given: Any) -> tuple[str, list[list[tuple[str, str]]]]:
    """The format of a file, and (role, content) of each message of each row."""
    found = of_one(path, chosen, **given)
    return found.rows.name, [pairs(conversation) for conversation in read_conversations([path], found.rows)]


def pairs(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in conversation]


def case(start: str) -> Path:
    (path,) = ROW_CASES.glob(f"{start}_*")
    return path


def turn(question: str, answer: str) -> list[tuple[str, str]]:
    return [("user", question), ("assistant", answer)]


OPTIONS = "A. Vitamin A\nB. Vitamin C"
FIRST_ROWS = {
    "d01": ("alpaca", turn("You are a doctor, answer the patient.\n\nI cough since 0 days.", "Drink, rest, come if fever.")),
    "d02": ("qa", turn(SCURVY, "Vitamin C.")),
    "d03": ("alpaca", turn("Name the drug class.\n\natenolol", "Beta blocker.")),
    "d04": ("messages", [("system", "Be short."), *turn(SCURVY, "Vitamin C.")]),
    "d05": ("sharegpt", [*turn(SCURVY, "Vitamin C."), *turn("And rickets?", "Vitamin D.")]),
    "d06": ("mcq", turn(f"{SCURVY}\n\n{OPTIONS}", "B. Vitamin C")),
    "d09": ("qa", turn(SCURVY, "Vitamin C.")),
    "d10": ("qa", turn("Which vitamin?", "Vitamin C")),
    "d13": ("qa", turn(f"{SCURVY} (0)", "Vitamin C.")),
    "d18": ("qa", turn(SCURVY, "Vitamin C.")),
    "d28": ("qa", turn(SCURVY, "Vitamin C.")),
}


@pytest.mark.parametrize("start", FIRST_ROWS)
def test_files_that_people_have_are_read_without_an_option(start: str) -> None:
    name, rows = said(case(start))
    assert (name, rows[0]) == FIRST_ROWS[start]


def test_d07_the_number_of_the_first_option_is_never_guessed() -> None:
    with pytest.raises(DataError, match="may count options from 0 or from 1: no row tells which") as caught:
        recognize([case("d07")])
    assert caught.value.hint is not None
    assert "--first_option 0 or 1" in caught.value.hint
    assert said(case("d07"), first_option=1)[1][0][-1] == ("assistant", "C. C")
    assert said(case("d07"), first_option=0)[1][0][-1] == ("assistant", "D. D")


def test_d08_d09_keys_without_a_usual_name_are_given() -> None:
    assert said(case("d08"), question_key="QUESTION", answer_key="LONG_ANSWER")[1][0] == turn("Does X help?", "It does.")
    found = of_one(case("d09"), reasoning_key="Complex_CoT")
    conversation = next(read_conversations([case("d09")], found.rows))
    assert conversation[-1].reasoning == "Scurvy is collagen..."
    assert (found.rows.keys.question, found.rows.keys.reasoning) == ("Question", "Complex_CoT")


@pytest.mark.parametrize("start", ["d12", "d19", "d23", "d24", "d25", "d26", "d29"])
def test_rows_of_no_format_keep_the_keys_of_the_original(start: str) -> None:
    assert of_one(case(start)) == (RowFormat(), "")


SENTENCES = [
    (
        [{"prompt": "q", "gold": "a", "options": ["x", "y"], "messages": [Q, A]}],
        "qa: question `prompt`, answer `gold` (they have `prompt` and `gold`).",
    ),
    (
        [{"question": "q", "gold": "a", "system": "s"}],
        "qa: question `question`, answer `gold`, system message `system` (the usual names, as they have no `prompt`).",
    ),
    ([{"id": "1", "chat": [Q, A]}], "messages: messages `chat` (`chat` is a list of messages with a role)."),
    (
        [{"messages": TURNS, "system": "s"}],
        "sharegpt: messages `messages`, system message `system` (`messages` is a list of turns of ShareGPT).",
    ),
    (
        [{"instruction": "q", "response": "a"}],
        "alpaca: question `instruction`, input `input`, answer `response` (they have `instruction` and `response`).",
    ),
    (
        [{"question": "q", "choices": ["x", "y"], "answer": 1}, {"question": "q", "choices": ["x", "y"], "answer": 0}],
        "mcq: question `question`, answer `answer`, options `choices`, options count from 0 (NUMBERED).",
    ),
    ([{"text": "t", "source": "x"}], "text: text `text` (they have `text`)."),
]


@pytest.mark.parametrize(("rows", "sentence"), SENTENCES)
def test_every_format_has_its_reason(tmp_path: Path, rows: list[dict[str, Any]], sentence: str) -> None:
    path = tmp_path / "rows.jsonl"
    numbered = (
        f"they have options, and the right one under `answer`; the numbers under `answer` count from 0, as {path}:2 shows"
    )
    look(tmp_path, *rows)
    assert recognize([path]).sentences == (f"Rows are read as {sentence.replace('NUMBERED', numbered)}",)


def test_rows_of_one_file_that_disagree_are_named_by_place(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the rows are not all of one format") as caught:
        look(tmp_path, {"messages": [Q, A]}, {"question": "q", "answer": "a"}, {"messages": [Q, A]})
    path = tmp_path / "rows.jsonl"
    assert caught.value.exit_code == 3
    assert f"messages: {path}:1, {path}:3\nqa: {path}:2" in str(caught.value)
    assert look(tmp_path, {"messages": [Q, A]}, {"question": "q", "answer": "a"}, chosen="messages").rows.name == "messages"


def test_usual_names_are_taken_where_all_rows_have_them_and_only_one_is_possible(tmp_path: Path) -> None:
    original = RowFormat()
    assert look(tmp_path, {"question": "q", "answer": "a"}, {"question": "q"}).rows == original
    assert look(tmp_path, {"question": "q", "answer": "a", "response": "b"}).rows == original
    assert look(tmp_path, {"prompt": "q", "gold": "a"}, {"question": "q", "answer": "a"}).rows == original
    assert look(tmp_path, {"question": "q", "answer": "a"}, {"question": "q", "answer": 3}).rows.keys.answer == "answer"
    assert look(tmp_path, {"q": "q", "answer": "a"}, question_key="q").rows.keys == Keys(question="q", answer="answer")
    assert look(tmp_path, {"data": {"instruction": "i", "input": "x", "output": "a"}, "context": "y"}).rows.keys == Keys(
        question="data.instruction", input="data.input", answer="data.output"
    )


def test_what_is_given_decides(tmp_path: Path) -> None:
    mixed = {"question": "q", "options": {"A": "x", "B": "y"}, "answer": "A", "text": "t", "messages": [Q, A]}
    assert look(tmp_path, mixed, question_key="question", answer_key="answer").rows == RowFormat(
        keys=Keys(question="question", answer="answer")
    )
    assert look(tmp_path, mixed, options_key="options").rows.name == "mcq"
    assert look(tmp_path, mixed, text_key="text").rows.name == "text"
    assert look(tmp_path, mixed, role_map="doctor=assistant").rows.keys.role_map == (("doctor", "assistant"),)
    assert look(tmp_path, mixed, chosen="messages", role_map="gpt=assistant").rows.keys.role_map == ()
    columns = {"opa": "x", "opb": "y", "opc": "z", "question": "q", "cop": 1}
    assert look(tmp_path, columns, options_key="opa,opb", first_option=0).rows.keys.options == ("opa", "opb")


def test_by_hand_and_by_itself_is_the_same_recipe(tmp_path: Path) -> None:
    for start, chosen, given in (
        ("d03", "alpaca", {}),
        ("d04", "messages", {"messages_key": "messages"}),
        ("d05", "sharegpt", {"messages_key": "conversations", "role_map": "human=user,gpt=assistant"}),
        ("d06", "mcq", {"options_key": "options", "answer_key": "answer_idx"}),
        ("d09", "qa", {"question_key": "Question", "answer_key": "Response"}),
    ):
        by_hand, found = of_one(case(start), chosen, **given).rows, of_one(case(start)).rows
        assert by_hand == found
        assert RowFormat.from_json(json.loads(json.dumps(found.to_json()))) == found
        assert found.differences(by_hand) == []


def test_differences_are_said_under_their_options() -> None:
    messages = RowFormat(name="messages", keys=Keys(question="", answer="", messages="m", role_map=(("doctor", "assistant"),)))
    assert messages.differences(RowFormat()) == ["--format was messages, now qa"]
    assert messages.differences(RowFormat(name="messages", keys=Keys(question="", answer="", messages="n"))) == [
        "--messages_key was m, now n",
        "--role_map was doctor=assistant, now not given",
    ]
    mcq = RowFormat(name="mcq", keys=Keys(options=("a", "b"), first_option=0))
    assert mcq.differences(RowFormat(name="mcq", keys=Keys(options=("o",), first_option=1))) == [
        "--options_key was a,b, now o",
        "--first_option was 0, now 1",
    ]
    assert mcq.to_json()["keys"]["first_option"] == 0


@pytest.mark.parametrize(
    ("chosen", "given", "where"),
    [
        ("qa", {"messages_key": "m"}, ["--messages_key"]),
        ("text", {"system_key": "s", "text_key": "t"}, ["--system_key"]),
        ("auto", {"messages_key": "m", "text_key": "t"}, ["--messages_key"]),
        ("auto", {"question_key": "q", "role_map": "a=user"}, ["--question_key"]),
        ("auto", {"role_map": "doctor"}, ["--role_map"]),
        ("auto", {"role_map": "a=user,a=tool"}, ["--role_map"]),
        ("auto", {"role_map": "a=text"}, ["--role_map"]),
        ("mcq", {"options_key": "a,,b"}, ["--options_key"]),
        ("mcq", {"question_key": "q", "options_key": "a,b", "first_option": 0, "group_key": "g"}, []),
        ("auto", {"reasoning_key": "r", "system_key": "s"}, []),
    ],
)
def test_options_that_contradict_the_format_or_each_other(chosen: str, given: dict[str, Any], where: Sequence[str]) -> None:
    assert [problem.where for problem in check_row_options(chosen, dict.fromkeys(USED_BY) | given)] == where


def test_options_of_several_formats_are_for_several_files() -> None:
    given = dict.fromkeys(USED_BY) | {"messages_key": "m", "text_key": "t"}
    assert check_row_options("auto", given, files=2) == check_row_options("auto", given, files=0) == []


def test_the_library_reads_rows_with_and_without_options() -> None:
    rows = medsft.open_rows(case("d05"))
    assert isinstance(rows.rows, RowFormat)
    assert (rows.rows.name, rows.reason) == ("sharegpt", "`conversations` is a list of turns of ShareGPT")
    first = next(iter(rows))
    assert first[0] == medsft.Message("user", SCURVY)
    assert len(list(rows)) == len(list(rows)) == 3
    assert pairs(next(iter(medsft.open_rows([str(case("d07"))], first_option=1))))[-1] == ("assistant", "C. C")
    assert list(medsft.open_rows(case("d25"), skip_bad=True)) == []
    with pytest.raises(medsft.MedsftError, match="has no meaning with --format qa"):
        medsft.open_rows(case("d05"), format="qa", messages_key="m")
