"""Questions of a file, which need no answers: rows of any kind of file that training takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from medsft.core.data.sources import usual_names
from medsft.core.data.sources.bad_rows import BadRows
from medsft.core.data.sources.base import BadRow, all_rows
from medsft.core.data.sources.columns import names
from medsft.core.data.sources.conversation import Conversation, Message
from medsft.core.data.sources.messages import USUAL_ROLES
from medsft.core.data.sources.multiple_choice import asked_with_options, letters_of, options_of
from medsft.core.data.sources.open import open_rows
from medsft.core.data.sources.values import fields_of, optional_text, text
from medsft.errors import DataError


@dataclass(frozen=True, slots=True)
class Question:
    """One row."""

    id: str | int
    """What stands under `id`, or its number from 1."""
    conversation: Conversation
    """Ends with what the model is to answer."""


def read_questions(path: Path, *, system: str = "", question_key: str | None = None) -> list[Question]:
    """Return the questions of a file: of each row the text under `question_key`; without one its messages, or the text under a
    usual name of a question.

    What belongs to the question is asked with it, as it is trained on: the input of an instruction, options with letters. A
    row's system message goes before `system`; answers that a row has are left out. Raises `DataError`.
    """
    bad = BadRows()
    found = list(_rows(path, system, question_key, bad))
    if bad.total:
        message = bad.error(then="so nothing was asked").message
        usual = ", ".join(usual_names.QUESTION)
        under = f"one of: {usual}; --question_key KEY names another" if question_key is None else question_key
        raise DataError(message, hint=f"correct these rows, or leave them out of the file; questions are under {under}")
    if not found:
        raise DataError(f"{path}: no rows.")
    return found


def _rows(path: Path, system: str, question_key: str | None, bad: BadRows) -> Iterator[Question]:
    source = open_rows(path)
    for number, row in enumerate(all_rows(source), 1):
        try:
            fields = row.fields()
            conversation = _conversation(fields, question_key)
            if system and conversation[0].role != "system":
                conversation = (Message("system", system), *conversation)
            own = fields.get("id")
            yield Question(own if isinstance(own, str | int) and not isinstance(own, bool) else number, conversation)
        except BadRow as error:
            bad.add(source.place(row.number), error)


def _conversation(row: Mapping[str, object], question_key: str | None) -> Conversation:
    keys = names(row)
    listed = row.get(usual_names.first(row, usual_names.MESSAGES) or "")
    if question_key is None and isinstance(listed, list):
        messages = [_message(item, number) for number, item in enumerate(listed, 1)]
        while messages and messages[-1].role == "assistant":
            messages.pop()
        if not messages or messages[-1].role != "user":
            raise BadRow("no message to answer", keys)
        return tuple(messages)
    key = question_key or usual_names.first(keys, usual_names.QUESTION)
    if key is None:
        raise BadRow("no question under one of the usual keys, and no messages", keys)
    question = text(row, key)
    if not question.strip():
        raise BadRow(f"empty question under '{key}'")
    question = _with_what_belongs_to_it(row, key, question)
    named = usual_names.first(keys, usual_names.SYSTEM)
    own = text(row, named) if named is not None and row.get(named) else ""
    return (Message("system", own), Message("user", question)) if own else (Message("user", question),)


def _with_what_belongs_to_it(row: Mapping[str, object], key: str, question: str) -> str:
    """Return a question with the options of its row, or with the input of its instruction."""
    under_one = usual_names.first(row, usual_names.OPTIONS)
    under = None if under_one is None else row[under_one]
    listed = bool(under) and (isinstance(under, list) or fields_of(under) is not None)
    options = (under_one,) if under_one is not None and listed else usual_names.option_columns(row)
    if options:
        found = options_of(row, options)
        return asked_with_options(question, letters_of(found), [option.text for option in found])
    further = usual_names.first(row, usual_names.INPUT) if key.lower() in usual_names.INSTRUCTION else None
    given = optional_text(row, further) if further is not None else ""
    return f"{question}\n\n{given}" if given.strip() else question


def _message(item: object, number: int) -> Message:
    fields = fields_of(item) or {}
    role, content = fields.get("role", fields.get("from")), fields.get("content", fields.get("value"))
    if not isinstance(role, str) or role not in USUAL_ROLES or not isinstance(content, str):
        raise BadRow(f"message {number} has no role that is known, or no text")
    return Message(USUAL_ROLES[role], content)
