"""Rows of chat models: a list of messages under one key."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from medsft.core.data.sources.base import BadRow
from medsft.core.data.sources.columns import Keys
from medsft.core.data.sources.conversation import Conversation, Message, up_to_answer
from medsft.core.data.sources.json_object import read_object
from medsft.core.data.sources.row_format import FormatName, RowFormat

Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def read(*messages: Any, name: FormatName = "messages", row: dict[str, Any] | None = None, **keys: Any) -> Conversation:
    """What a row says that was written as JSON, so that objects are those of the parser."""
    rows = RowFormat(name=name, keys=Keys(question="", answer="", messages="m", **keys))
    return rows.conversation(read_object(json.dumps({"m": list(messages), **(row or {})}).encode()))


def reason(*messages: Any, **options: Any) -> str:
    with pytest.raises(BadRow) as caught:
        read(*messages, **options)
    return str(caught.value)


def turn(role: str, text: str) -> dict[str, str]:
    return {"from": role, "value": text}


def test_messages_keep_their_order_and_roles() -> None:
    said = [("developer", "s"), ("user", "q"), ("assistant", "a"), ("tool", ""), ("assistant", "b"), ("user", "again")]
    found = read(*({"role": role, "content": text} for role, text in said))
    assert [(message.role, message.content) for message in found] == [("system", "s"), *said[1:]]
    assert all(message.trained and not message.reasoning for message in found)


def test_names_of_roles_are_the_usual_ones_in_any_case_and_those_of_the_map() -> None:
    assert [m.role for m in read(turn("Human", "q"), turn("GPT", "a"), name="sharegpt")] == ["user", "assistant"]
    mapped = read(
        turn("Patient", "q"), turn("doctor", "a"), name="sharegpt", role_map=(("doctor", "assistant"), ("patient", "user"))
    )
    assert [message.role for message in mapped] == ["user", "assistant"]
    unknown = reason(turn("Miller", "q"), turn("gpt", "a"), name="sharegpt")
    assert "'from' of message 1 is not the usual name of a role" in unknown
    assert "Miller" not in unknown  # it may be a patient's


def test_sharegpt_may_have_role_and_content() -> None:
    assert read(Q, A, name="sharegpt") == read(Q, A) == read(turn("human", "q"), turn("gpt", "a"), name="sharegpt")
    assert reason(turn("human", "q"), turn("gpt", "a")) == "message 1 has no key 'role'"


def test_content_in_parts_is_joined_and_what_is_no_text_is_refused() -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}, "b", {"text": "c"}]}
    assert read(parts, A)[0].content == "abc"
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
    assert "message 1 has a part that is no text" in reason(image, A)


def test_weight_and_reasoning() -> None:
    untrained, thinking = {**A, "weight": 0}, {**A, "weight": 1, "reasoning_content": "hm"}
    assert read(Q, untrained, Q, thinking)[1::2] == (Message("assistant", "a", trained=False), Message("assistant", "a", "hm"))
    assert read({**Q, "weight": 0, "name": "x"}, A)[0] == Message("user", "q")
    assert read(Q, A, row={"why": "so"}, reasoning="why")[-1] == Message("assistant", "a", "so")
    assert read(Q, A, {"role": "user", "content": "q"}, row={"why": None}, reasoning="why")[1] == Message("assistant", "a")
    assert "reasoning under 'why' and in the last message" in reason(Q, thinking, row={"why": "so"}, reasoning="why")


def test_a_system_message_may_stand_beside_the_messages() -> None:
    assert read(Q, A, row={"s": "be short"}, system="s")[0] == Message("system", "be short")
    assert len(read({"role": "system", "content": ""}, Q, A, row={"s": ""}, system="s")) == 2
    both = reason({"role": "system", "content": "x"}, Q, A, row={"s": "y"}, system="s")
    assert both == "a system message under 's' and another one among the messages"
    assert len(read({"role": "system", "content": "x"}, Q, A, row={"s": "x"}, system="s")) == 3


def test_a_conversation_is_asked_up_to_its_last_answer() -> None:
    conversation = read(Q, A, Q, A, Q)
    assert up_to_answer(conversation) == conversation[:-1]
    assert up_to_answer(conversation[:1]) == conversation[:1]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ([], "no message under 'm'"),
        ([Q], "no message of the assistant's"),
        ([A, Q, A], "the first message is the assistant's: there is nothing that it answers"),
        ([{"role": "system", "content": "x"}, A], "the first message is the assistant's: there is nothing that it answers"),
        ([Q, {**A, "weight": 0}], "every message of the assistant's has the weight 0"),
        ([Q, {**A, "weight": 0.5}], "'weight' of message 2 is neither 0 nor 1"),
        ([Q, {**A, "content": " "}], "message 2 is empty"),
        ([{**Q, "content": None}, A], "message 1 is empty"),
        ([Q, {**A, "content": 3}], "'content' of message 2 is a number, not a string or a list of text parts"),
        (
            [Q, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}],
            "message 2 has 'tool_calls', which are not supported",
        ),
        ([Q, {**A, "function_call": {"name": "f"}}], "message 2 has 'function_call', which are not supported"),
        ([Q, {"role": "function_call", "content": "f()"}, A], "message 2 is a call of a tool, which is not supported"),
        ([Q, "a"], "message 2 is a string, not an object"),
        ([{"content": "q"}, A], "message 1 has no key 'role'"),
        ([{"role": 1, "content": "q"}, A], "'role' of message 1 is a number, not a string"),
        ([Q, {**A, "content": "\ud83d"}], "half of a surrogate pair (an escape from \\ud800 to \\udfff) in message 2"),
    ],
)
def test_what_is_no_conversation_has_a_reason(said: list[Any], why: str) -> None:
    assert reason(*said) == why


def test_rows_without_a_list_and_with_images() -> None:
    rows = RowFormat(name="messages", keys=Keys(question="", answer="", messages="m"))
    with pytest.raises(BadRow, match="no key 'm'") as caught:
        rows.conversation({"messages": []})
    assert caught.value.keys == ("messages",)
    with pytest.raises(BadRow, match="'m' is a string, not a list of messages"):
        rows.conversation({"m": "x"})
    assert reason(Q, A, row={"images": ["a.png"]}) == "the row has 'images': only text is supported"
    assert read(Q, A, row={"images": []}) == read(Q, A)
    assert re.search("same key twice", reason_of_line('{"m": [{"role": "user", "role": "assistant", "content": "x"}]}'))


def reason_of_line(line: str) -> str:
    rows = RowFormat(name="messages", keys=Keys(question="", answer="", messages="m"))
    with pytest.raises(BadRow) as caught:
        rows.conversation(read_object(line.encode()))
    return str(caught.value)
