"""The row format of one question and one answer: which values of a row are what messages say."""

from __future__ import annotations

from collections.abc import Mapping

from medsft.core.data.sources.base import BadRow
from medsft.core.data.sources.columns import REPEATED, Keys, RepeatedKey, find, names
from medsft.core.data.sources.conversation import Conversation, question_and_answer

_TYPES: Mapping[type, str] = {
    **dict.fromkeys((int, float), "a number"),
    bool: "true or false",
    list: "a list",
    **dict.fromkeys((dict, tuple), "an object"),
    type(None): "null",
}


def question_answer(row: Mapping[str, object], keys: Keys) -> Conversation:
    """The question and the answer of a row, after its system message if it has one. Raises BadRow.

    A system message that is absent, null or empty is none: rows with and without one stand in the same file.
    """
    question, answer = _text(row, keys.question), _text(row, keys.answer)
    system = None if keys.system is None else _text(row, keys.system, optional=True)
    if not question.strip():
        raise BadRow(f"empty question under '{keys.question}'")
    if not answer.strip():
        raise BadRow(f"empty answer under '{keys.answer}'")
    return question_and_answer(question, answer, system or None)


def _text(row: Mapping[str, object], key: str, *, optional: bool = False) -> str:
    """The string under a key; with `optional` an absent one and null are empty."""
    try:
        there, value = find(row, key)
    except RepeatedKey:
        raise BadRow(REPEATED) from None
    if optional and value is None:
        return ""
    if not there:
        raise BadRow(f"no key '{key}'", names(row))
    if not isinstance(value, str):
        raise BadRow(f"'{key}' is {_TYPES[type(value)]}, not a string", names(row))
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair
        raise BadRow(f"half of a surrogate pair (an escape from \\ud800 to \\udfff) under '{key}'") from None
    return value
