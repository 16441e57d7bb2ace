"""Values of a row, as all row formats read them: a string under a key, or the reason for which there is none."""

from __future__ import annotations

from collections.abc import Mapping

from medsft.core.data.sources.base import BadRow
from medsft.core.data.sources.columns import REPEATED, Keys, RepeatedKey, find, members, names
from medsft.core.data.sources.conversation import Conversation

_TYPES: Mapping[type, str] = {
    **dict.fromkeys((int, float), "a number"),
    bool: "true or false",
    str: "a string",
    list: "a list",
    **dict.fromkeys((dict, tuple), "an object"),
    type(None): "null",
}


def text(row: Mapping[str, object], key: str) -> str:
    """Return the string under a key. Raises BadRow."""
    value = row.get(key)
    if not isinstance(value, str):  # a nested key, or none
        value = under(row, key)
        if not isinstance(value, str):
            raise BadRow(f"'{key}' is {kind_of(value)}, not a string", names(row))
    if not value.isascii():
        refuse_surrogates(value, f"under '{key}'")
    return value


def optional_text(row: Mapping[str, object], key: str) -> str:
    """Return the string under a key; an absent one and null are empty. Raises BadRow."""
    if found(row, key)[1] is None:
        return ""
    return text(row, key)


def under(row: Mapping[str, object], key: str) -> object:
    """Return what stands under a key. Raises BadRow when it is not there."""
    there, value = found(row, key)
    if not there:
        raise BadRow(f"no key '{key}'", names(row))
    return value


def found(row: Mapping[str, object], key: str) -> tuple[bool, object]:
    """Return whether the row has the key, and what stands under it. Raises BadRow when the key is there twice."""
    try:
        return find(row, key)
    except RepeatedKey:
        raise BadRow(REPEATED) from None


def fields_of(value: object) -> Mapping[str, object] | None:
    """Return the fields of an object, None for another value. Raises BadRow when a key is there twice."""
    try:
        return members(value)
    except RepeatedKey:
        raise BadRow(REPEATED) from None


def kind_of(value: object) -> str:
    """Return what a value is, in the words of JSON."""
    return _TYPES[type(value)]


def refuse_surrogates(value: str, where: str) -> None:
    """Raise BadRow for half of a surrogate pair, which JSON can spell and UTF-8 cannot."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRow(f"half of a surrogate pair (an escape from \\ud800 to \\udfff) {where}") from None


def with_reasoning(conversation: Conversation, row: Mapping[str, object], keys: Keys) -> Conversation:
    """Return a conversation whose last message of the assistant's has the row's reasoning, if it has one. Raises BadRow."""
    reasoning = optional_text(row, keys.reasoning)
    if not reasoning.strip():
        return conversation
    last = max(number for number, message in enumerate(conversation) if message.role == "assistant")
    if conversation[last].reasoning:
        raise BadRow(f"reasoning under '{keys.reasoning}' and in the last message of the assistant's, too")
    return (*conversation[:last], conversation[last]._replace(reasoning=reasoning), *conversation[last + 1 :])
