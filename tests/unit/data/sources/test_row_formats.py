"""Rows of Alpaca, multiple-choice questions and plain text as conversations, or the reason why not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from medsft.core.data.sources.base import BadRow
from medsft.core.data.sources.columns import Keys
from medsft.core.data.sources.conversation import Conversation, Message
from medsft.core.data.sources.json_object import read_object
from medsft.core.data.sources.row_format import FormatName, RowFormat

ALPACA = Keys(question="instruction", input="input", answer="output", system="system")
FOUR = {"A": "w", "B": "x", "C": "y", "D": "z"}


def read(name: FormatName, keys: Keys, row: dict[str, Any]) -> Conversation:
    return RowFormat(name=name, keys=keys).conversation(read_object(json.dumps(row).encode()))


def reason(name: FormatName, keys: Keys, row: dict[str, Any]) -> str:
    with pytest.raises(BadRow) as caught:
        read(name, keys, row)
    return str(caught.value)


def answer(value: Any, options: Any = FOUR, *, first_option: int | None = None) -> str:
    """What the assistant says, or the reason why the row cannot be used."""
    keys = Keys(question="q", answer="a", options=("o",), first_option=first_option)
    try:
        return read("mcq", keys, {"q": "which?", "o": options, "a": value})[-1].content
    except BadRow as bad:
        return str(bad)


def test_an_input_follows_the_instruction_where_there_is_one() -> None:
    rows: list[dict[str, Any]] = [
        {"instruction": "i", "input": "x", "output": "o", "system": "s"},
        *({"instruction": "i", "output": "o"} | more for more in ({}, {"input": None}, {"input": ""}, {"input": " \n"})),
    ]
    found = [read("alpaca", ALPACA, row) for row in rows]
    assert found[0] == (Message("system", "s"), Message("user", "i\n\nx"), Message("assistant", "o"))
    assert found[1:] == [(Message("user", "i"), Message("assistant", "o"))] * 4
    assert reason("alpaca", ALPACA, {"instruction": " ", "output": "o"}) == "empty instruction under 'instruction'"
    assert reason("alpaca", ALPACA, {"instruction": "i", "output": ""}) == "empty answer under 'output'"
    assert reason("alpaca", ALPACA, {"instruction": "i", "input": 3, "output": "o"}) == "'input' is a number, not a string"


def test_text_is_one_message_of_its_own_role() -> None:
    keys = Keys(question="", answer="", text="body.t")
    assert read("text", keys, {"body": {"t": " Fever: ...\n"}}) == (Message("text", " Fever: ...\n"),)
    assert reason("text", keys, {"body": {"t": " "}}) == "empty text under 'body.t'"
    assert reason("text", keys, {"t": "x"}) == "no key 'body.t'"


@pytest.mark.parametrize("right", ["B", "b", "(b)", "B.", "B) ", "x", "B. x"])
@pytest.mark.parametrize(
    "options",
    [
        FOUR,
        ["w", "x", "y", "z"],
        [{"key": "A", "value": "w"}, {"key": "B", "value": "x"}, {"key": "C", "value": "y"}, {"key": "D", "value": "z"}],
        {"label": ["A", "B", "C", "D"], "text": ["w", "x", "y", "z"]},
    ],
)
def test_options_in_every_shape_are_lettered_and_the_right_one_is_told_by_letter_and_text(options: Any, right: str) -> None:
    keys = Keys(question="q", answer="a", options=("o",))
    asked, answered = read("mcq", keys, {"q": "which?", "o": options, "a": right})
    assert (asked.content, answered.content) == ("which?\n\nA. w\nB. x\nC. y\nD. z", "B. x")


def test_options_in_keys_of_their_own_and_absent_ones() -> None:
    keys = Keys(question="q", answer="a", options=("opa", "opb", "opc", "opd"), first_option=1)
    row = {"q": "which?", "opa": "w", "opb": "x", "opc": None, "opd": "z", "a": 4}
    asked, answered = read("mcq", keys, row)
    assert (asked.content, answered.content) == ("which?\n\nA. w\nB. x\nD. z", "D. z")
    assert reason("mcq", keys, {**row, "a": 3}) == "the answer under 'a' is none of the options"
    assert reason("mcq", keys, {"q": "which?", "a": 1}) == "no key 'opa'"
    assert reason("mcq", keys, {"q": "which?", "opa": "w", "a": 1}) == "fewer than two options under 'opa'"


@pytest.mark.parametrize(
    ("value", "first_option", "expected"),
    [
        (0, 0, "A. w"),
        (3, 0, "D. z"),
        (1, 1, "A. w"),
        (4, 1, "D. z"),
        ("2", 1, "B. x"),
        (2.0, 1, "B. x"),
        (4, 0, "the answer under 'a' is none of the options"),
        (0, 1, "the answer under 'a' is none of the options"),
        (-1, 0, "the answer under 'a' is none of the options"),
        (9, None, "the answer under 'a' is none of the options"),
        ("E", None, "the answer under 'a' is none of the options"),
        ("A, B", None, "the answer under 'a' is none of the options"),
        (None, None, "no answer under 'a'"),
        (["B"], None, "'a' is a list, not the label, the number or the text of an option"),
        (True, None, "'a' is true or false, not the label, the number or the text of an option"),
    ],
)
def test_numbers_of_options_count_from_what_was_told(value: Any, first_option: int | None, expected: str) -> None:
    assert answer(value, first_option=first_option) == expected


def test_an_answer_that_can_mean_two_options_is_refused() -> None:
    assert "nothing says whether options count from 0 or from 1 (--first_option)" in answer(2)
    assert answer("B", ["B", "A"]) == "the answer under 'a' can mean several options"
    assert answer("x", ["x", "x"]) == "the answer under 'a' can mean several options"
    assert "nothing says whether" in answer(2, [1, 2, 3, 4])
    assert answer(2, [1, 2, 3, 4], first_option=0) == "the answer under 'a' can mean several options"
    assert answer(2, [1, 2, 3, 4], first_option=1) == "B. 2"


def test_labels_and_numbers_in_texts_are_no_numbers_of_options() -> None:
    assert answer("2", {"1": "w", "2": "x"}) == answer(2, {"1": "w", "2": "x"}) == "B. x"
    assert answer("40", ["20", "40"]) == answer(40, [20, 40]) == "B. 40"
    assert answer("2", ["1", "2", "3"]) == "B. 2"
    assert answer(0.5, [0.25, 0.5]) == "'a' is a number, not the label, the number or the text of an option"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("A: x, B: y", "'o' is a string, not a list or an object of options"),
        (["x"], "fewer than two options under 'o'"),
        (["x", ["y"]], "an option under 'o' is a list, not a string"),
        ([{"a": "x"}, {"b": "y"}], "an option under 'o' is an object without `key` and `value` or `label` and `text`"),
        (list("abcdefghijklmnopqrstuvwxyzä"), "more than 26 options under 'o'"),
        (["x", "\ud83d"], "half of a surrogate pair (an escape from \\ud800 to \\udfff) under 'o'"),
    ],
)
def test_what_is_no_list_of_options_has_a_reason(options: Any, expected: str) -> None:
    assert answer("A", options) == expected
