"""The row format of chat models: a list of messages, each with a role and what it says.

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}

As OpenAI's fine-tuning documents it, with what chat templates take beside: content in text parts, reasoning, `weight`. In a
table (CSV, or a column of strings in Parquet) the list is often written as text, in JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from medsft.core.data.sources.base import BadRow, EmptyRow
from medsft.core.data.sources.columns import Keys, names
from medsft.core.data.sources.conversation import Conversation, Message, MessageRole
from medsft.core.data.sources.json_object import read_object
from medsft.core.data.sources.values import fields_of, kind_of, optional_text, refuse_surrogates, under, with_reasoning

ROLE_AND_CONTENT = ("role", "content")
_USUAL_ROLES: Mapping[MessageRole, str] = {
    "system": "system developer",
    "user": "user human prompter",
    "assistant": "assistant gpt chatgpt bot chatbot model ai bard bing claude",
    "tool": "tool function ipython observation tool_response function_response",
}
USUAL_ROLES: Mapping[str, MessageRole] = {name: role for role, names in _USUAL_ROLES.items() for name in names.split()}
"""How roles are called in rows of chat models: in those of OpenAI, ShareGPT, OpenAssistant, Gemini and LLaMA-Factory."""
_REASONING = ("reasoning_content", "reasoning", "thinking")
"""Fields of a message that has what the assistant thinks before it answers: of DeepSeek and Qwen, OpenRouter, gpt-oss."""
_CALLS = ("tool_calls", "function_call", "audio")
_CALL_ROLES = ("function_call", "tool_call")
_MEDIA = ("images", "image", "videos", "audios", "audio")
"""Of a row, beside its messages."""


def messages(row: Mapping[str, object], keys: Keys) -> Conversation:
    """Return the messages of a row. Raises BadRow, see `conversation_in`."""
    return conversation_in(row, keys, ROLE_AND_CONTENT)


def conversation_in(row: Mapping[str, object], keys: Keys, *spellings: tuple[str, str]) -> Conversation:
    """Return the messages in the list under `keys.messages`, whose fields for role and content have one of these names.

    A system message that says nothing is none; the one under `keys.system` stands before the others. Raises BadRow for what is
    no conversation: no message of the assistant's to train on, or nothing before its first one. Which roles may follow each
    other is left to the chat template.
    """
    listed = under(row, keys.messages)
    if is_written_list(listed):
        try:
            listed = read_written_list(str(listed))
        except BadRow as bad:
            raise BadRow(f"'{keys.messages}' is a string with a list in it that cannot be read: {bad}") from None
    if not isinstance(listed, list):
        raise BadRow(f"'{keys.messages}' is {kind_of(listed)}, not a list of messages", names(row))
    roles = _roles(keys.role_map)
    said: list[Message] = []
    for number, item in enumerate(listed, 1):
        message = _plain_message(item, roles, spellings[0]) or _message(item, number, roles, spellings)
        if message.content or message.role != "system":
            said.append(message)
    conversation = tuple(said)
    if keys.system is not None:
        conversation = _with_system(conversation, row, keys)
    if len(row) > 1:
        _refuse_media(row)
    _refuse_unanswered(conversation, keys)
    return with_reasoning(conversation, row, keys) if keys.reasoning else conversation


def is_written_list(value: object) -> bool:
    """Tell whether a value is text that begins as a list of objects does in JSON."""
    return isinstance(value, str) and value[:1] == "[" and value[1:].lstrip()[:1] == "{"


def read_written_list(text: str) -> object:
    """Return what a text says in JSON. Raises BadRow as the rows of a file do."""
    fields = read_object(b'{"list":%b}' % text.encode("utf-8", "surrogatepass"))
    if len(fields) > 1:
        raise BadRow("not JSON")
    return fields["list"]


def _plain_message(item: Any, roles: Mapping[str, MessageRole], spelling: tuple[str, str]) -> Message | None:
    """Return a message of a role and a text, as nearly all are; None for anything that takes a closer look."""
    if type(item) is not dict or len(item) != 2:
        return None
    name, text = item.get(spelling[0]), item.get(spelling[1])
    if type(name) is not str or type(text) is not str or not text or text.isspace():
        return None
    role = roles.get(name)
    if role is None:
        return None
    try:
        text.encode()
    except UnicodeEncodeError:
        return None
    return Message(role, text)


@lru_cache
def _roles(role_map: tuple[tuple[str, MessageRole], ...]) -> Mapping[str, MessageRole]:
    return {**USUAL_ROLES, **dict(role_map)}


def _message(item: object, number: int, roles: Mapping[str, MessageRole], spellings: Sequence[tuple[str, str]]) -> Message:
    fields = item if type(item) is dict else _fields(item, number)
    role_name, content_name = spellings[0] if spellings[0][0] in fields else _spelling(fields, number, spellings)
    role = _role(fields[role_name], role_name, number, roles)
    content = fields.get(content_name)
    text = content if type(content) is str else _joined(content, content_name, number, fields)
    refuse_surrogates(text, f"in message {number}")
    if len(fields) > 2:
        return _with_extras(role, text, number, fields)
    if role in ("user", "assistant") and not text.strip():
        raise EmptyRow(f"message {number} is empty")
    return Message(role, text)


def _fields(item: object, number: int) -> Mapping[str, object]:
    fields = fields_of(item)
    if fields is None:
        raise BadRow(f"message {number} is {kind_of(item)}, not an object")
    return fields


def _spelling(fields: Mapping[str, object], number: int, spellings: Sequence[tuple[str, str]]) -> tuple[str, str]:
    for spelling in spellings:
        if spelling[0] in fields:
            return spelling
    raise BadRow(f"message {number} has no key '{spellings[0][0]}'", tuple(fields))


def _role(value: object, name: str, number: int, roles: Mapping[str, MessageRole]) -> MessageRole:
    if not isinstance(value, str):
        raise BadRow(f"'{name}' of message {number} is {kind_of(value)}, not a string")
    role = roles.get(value) or roles.get(value.strip().lower())
    if role is None:
        if value in _CALL_ROLES:
            raise BadRow(f"message {number} is a call of a tool, which is not supported")
        raise BadRow(f"'{name}' of message {number} is not the usual name of a role (--role_map NAME=user gives it one)")
    return role


def _joined(content: object, name: str, number: int, fields: Mapping[str, object]) -> str:
    """Return the text of a content that is no string: null, or a list of parts."""
    if content is None:
        _refuse_calls(fields, number)
        return ""
    if not isinstance(content, list):
        raise BadRow(f"'{name}' of message {number} is {kind_of(content)}, not a string or a list of text parts")
    texts = []
    for part in content:
        of_part = None if isinstance(part, str) else _fields(part, number)
        text = part if of_part is None else of_part.get("text")
        if not isinstance(text, str) or (of_part is not None and of_part.get("type", "text") != "text"):
            raise BadRow(f"message {number} has a part that is no text, such as an image: only text is supported")
        texts.append(text)
    return "".join(texts)


def _with_extras(role: MessageRole, text: str, number: int, fields: Mapping[str, object]) -> Message:
    """Return a message that has more fields than role and content."""
    _refuse_calls(fields, number)
    weight = fields.get("weight")
    if weight not in (None, 0, 1):
        raise BadRow(f"'weight' of message {number} is neither 0 nor 1")
    trained = weight != 0 or role != "assistant"
    reasoning = ""
    if role == "assistant":
        reasoning = next((value for name in _REASONING if isinstance(value := fields.get(name), str) and value.strip()), "")
        refuse_surrogates(reasoning, f"in message {number}")
    if role in ("user", "assistant") and trained and not text.strip():
        raise EmptyRow(f"message {number} is empty")
    return Message(role, text, reasoning, trained)


def _refuse_calls(fields: Mapping[str, object], number: int) -> None:
    for name in _CALLS:
        if fields.get(name):
            raise BadRow(f"message {number} has '{name}', which are not supported")


def _refuse_media(row: Mapping[str, object]) -> None:
    for name in _MEDIA:
        if row.get(name):
            raise BadRow(f"the row has '{name}': only text is supported", names(row))


def _with_system(conversation: Conversation, row: Mapping[str, object], keys: Keys) -> Conversation:
    assert keys.system is not None
    system = optional_text(row, keys.system)
    if not system:
        return conversation
    if conversation and conversation[0].role == "system":
        if conversation[0].content == system:
            return conversation
        raise BadRow(f"a system message under '{keys.system}' and another one among the messages")
    return (Message("system", system), *conversation)


def _refuse_unanswered(conversation: Conversation, keys: Keys) -> None:
    """Raise BadRow for messages that are no conversation to train on."""
    if not conversation:
        raise BadRow(f"no message under '{keys.messages}'")
    trained = False
    first = ""
    for message in conversation:
        if message.role != "system":
            first = first or message.role
            trained = trained or (message.role == "assistant" and message.trained)
    if first != "assistant" and trained:
        return
    if not any(message.role == "assistant" for message in conversation):
        raise BadRow("no message of the assistant's")
    if not trained:
        raise BadRow("every message of the assistant's has the weight 0")
    raise BadRow("the first message is the assistant's: there is nothing that it answers")
