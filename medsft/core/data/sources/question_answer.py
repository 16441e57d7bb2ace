"""The row format of one question and one answer: which values of a row are what messages say."""

from __future__ import annotations

from collections.abc import Mapping

from medsft.core.data.sources.base import EmptyRow
from medsft.core.data.sources.columns import Keys
from medsft.core.data.sources.conversation import Conversation, question_and_answer
from medsft.core.data.sources.values import optional_text, text, with_reasoning


def question_answer(row: Mapping[str, object], keys: Keys) -> Conversation:
    """The question and the answer of a row, after its system message if it has one. Raises BadRow."""
    question, answer = text(row, keys.question), text(row, keys.answer)
    if not question.strip():
        raise EmptyRow(f"empty question under '{keys.question}'")
    return conversation_of(row, keys, question, answer)


def conversation_of(row: Mapping[str, object], keys: Keys, question: str, answer: str) -> Conversation:
    """A question and its answer, with the system message and the reasoning of their row if it has them. Raises BadRow.

    A system message that is absent, null or empty is none: rows with and without one stand in the same file.
    """
    system = "" if keys.system is None else optional_text(row, keys.system)
    if not answer.strip():
        raise EmptyRow(f"empty answer under '{keys.answer}'")
    conversation = question_and_answer(question, answer, system or None)
    return with_reasoning(conversation, row, keys) if keys.reasoning else conversation
