"""What a row says: messages in their order, each with the role of whoever wrote it."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

MessageRole = Literal["system", "user", "assistant", "tool", "text"]
"""As chat templates and the rows of chat models name them. `text` is the only message of a document that is no conversation."""


class Message(NamedTuple):
    """One message. (A tuple, as every row makes a few: a frozen dataclass takes three times as long.)"""

    role: MessageRole
    content: str
    reasoning: str = ""
    """What the assistant thinks before it writes `content`"""
    trained: bool = True
    """False for a message of the assistant's that is only read"""


Conversation: TypeAlias = tuple[Message, ...]
"""Messages in their order. Any number of them may be the assistant's: those are what is trained on."""


def question_and_answer(question: str, answer: str, system: str | None = None) -> Conversation:
    """A conversation of one turn, with a system message before it if there is one."""
    turn = Message("user", question), Message("assistant", answer)
    return turn if system is None else (Message("system", system), *turn)


def parts_up_to_answers(conversation: Conversation) -> tuple[Conversation, ...]:
    """Return for each answer that is trained on the messages up to and with it; the conversation itself when there is none."""
    ends = [number for number, message in enumerate(conversation, 1) if message.role == "assistant" and message.trained]
    return tuple(conversation[:end] for end in ends) or (conversation,)


def up_to_answer(conversation: Conversation) -> Conversation:
    """The conversation up to its last message of the assistant's; all of one that has none."""
    ends = [number for number, message in enumerate(conversation, 1) if message.role == "assistant"]
    return conversation[: ends[-1]] if ends else conversation
