from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medsft.core.data.sources.conversation import Message
from medsft.core.evaluation.questions import read_questions
from medsft.errors import DataError


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_need_no_answers(tmp_path: Path) -> None:
    file = write(
        tmp_path / "q.jsonl",
        {"prompt": "the dose?"},
        {"question": "and then?", "gold": "left out", "id": "b", "system": "be brief"},
        {"messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]},
        {"conversations": [{"from": "human", "value": "1"}, {"from": "gpt", "value": "2"}, {"from": "human", "value": "3"}]},
    )
    first, second, third, fourth = read_questions(file, system="asked for")
    assert (first.id, first.conversation) == (1, (Message("system", "asked for"), Message("user", "the dose?")))
    assert (second.id, second.conversation) == ("b", (Message("system", "be brief"), Message("user", "and then?")))
    assert third.conversation[1:] == (Message("user", "one"),)
    assert [message.content for message in fourth.conversation[1:]] == ["1", "2", "3"]


def test_what_belongs_to_a_question_is_asked_with_it(tmp_path: Path) -> None:
    """As such rows are trained on."""
    file = write(
        tmp_path / "q.jsonl",
        {"instruction": "Name the class.", "input": "atenolol", "output": "Beta blocker."},
        {"instruction": "Name one.", "input": "", "context": "x"},
        {"question": "Which?", "options": {"A": "zinc", "B": "iron"}, "answer_idx": "A"},
        {"question": "Which?", "opa": "zinc", "opb": "iron", "opc": "lead", "cop": 1},
        {"question": "Which?", "options": [], "context": "not the question's"},
    )
    asked = [question.conversation[-1].content for question in read_questions(file)]
    assert asked == [
        "Name the class.\n\natenolol",
        "Name one.",
        "Which?\n\nA. zinc\nB. iron",
        "Which?\n\nA. zinc\nB. iron\nC. lead",
        "Which?",
    ]


def test_a_question_under_a_key_of_ones_own(tmp_path: Path) -> None:
    rows = {"Fall": "one", "prompt": "another"}, {"Fall": "two", "messages": [], "options": ["zinc", "iron"]}
    asked = read_questions(write(tmp_path / "q.jsonl", *rows), question_key="Fall")
    assert [question.conversation[-1].content for question in asked] == ["one", "two\n\nA. zinc\nB. iron"]
    nested = write(tmp_path / "nested.jsonl", {"data": {"text": "three"}})
    [question] = read_questions(nested, question_key="data.text")
    assert question.conversation == (Message("user", "three"),)
    with pytest.raises(DataError, match="'Fall'") as error:
        read_questions(nested, question_key="Fall")
    assert "questions are under Fall" in str(error.value.hint)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "SECRET"}, "no question under one of the usual keys"),
        ({"prompt": " "}, "empty question"),
        ({"prompt": 3}, "is a number"),
        ({"messages": [{"role": "assistant", "content": "SECRET"}]}, "no message to answer"),
        ({"messages": [{"role": "SECRET", "content": "x"}]}, "message 1 has no role"),
    ],
)
def test_a_row_without_a_question_is_named_and_not_quoted(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    file = write(tmp_path / "q.jsonl", {"prompt": "x"}, row)
    with pytest.raises(DataError, match=reason) as error:
        read_questions(file)
    assert "q.jsonl:2" in str(error.value)
    assert "SECRET" not in str(error.value)
