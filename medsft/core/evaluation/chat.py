"""Conversations with a model: prompts in its own template, answers as text while they are written. Nothing is stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from medsft.core.data.dataset.encode import encode_prompt
from medsft.core.data.sources.conversation import Conversation, Message
from medsft.core.data.tokenizers.base import OpenedTokenizer
from medsft.core.evaluation.model import ModelSource
from medsft.core.evaluation.requests import (
    Generate,
    Generated,
    Precision,
    answer,
    default_precision,
    engine_arguments,
    from_json,
    to_json,
)
from medsft.core.run.engine_lines import EngineLines
from medsft.errors import DataError

_UNFINISHED = "\ufffd"
"""What a tokenizer writes for a character of which not all bytes are there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How answers are chosen."""

    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


def prompt_for(
    id_: str, conversation: Conversation, model: ModelSource, opened: OpenedTokenizer, sampling: Sampling
) -> Generate:
    """Return the request for the assistant's next message; the answer may be as long as the model's context leaves room.

    Raises `DataError` for what the template cannot write, and where there is no room.
    """
    prompt = tuple(encode_prompt(conversation, opened))
    room = model.context - len(prompt)
    if room < 1:
        raise DataError(
            f"A prompt of {len(prompt):,} tokens is longer than the context of {model.name}, {model.context:,} tokens.",
            hint="Ask a shorter question, or begin another conversation.",
        )
    return Generate(
        id=id_,
        prompt=prompt,
        max_new_tokens=min(sampling.max_tokens, room),
        ends=model.ends,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=sampling.seed,
    )


def answers_to(
    model: ModelSource,
    conversations: Sequence[Conversation],
    sampling: Sampling,
    *,
    precision: Precision | None = None,
    keep: Path | None = None,
) -> Iterator[tuple[int, str]]:
    """Yield (number of a conversation, the assistant's next message in it), in any order. See `requests.answer`."""
    opened = model.open_tokenizer()
    requests = [prompt_for(str(i), each, model, opened, sampling) for i, each in enumerate(conversations)]
    for found in answer(model, requests, precision=precision, keep=keep):
        assert isinstance(found, Generated)
        yield int(found.id), opened.tokenizer.decode(found.ids).strip()


@contextmanager
def all_or_none(chats: Sequence[Chat]) -> Iterator[None]:
    """Have what is asked inside be a part of all conversations, or, where one of them fails or is broken off, of none."""
    before = [chat.mark() for chat in chats]
    try:
        yield
    except BaseException:
        for chat, mark in zip(chats, before, strict=True):
            chat.go_back(mark)
        raise


class Chat:
    """A conversation with one model, whose engine process lives as long as the block."""

    def __init__(self, model: ModelSource, sampling: Sampling, *, system: str = "", precision: Precision | None = None) -> None:
        """Start the process; it loads the model while the person types."""
        self.model = model
        self._sampling = sampling
        self._opened = model.open_tokenizer()
        self._system: Conversation = (Message("system", system),) if system else ()
        self.messages: Conversation = self._system
        self._begun = 0  # how often it began anew
        arguments = engine_arguments(model, precision or default_precision(), model.tokens)
        self._engine = EngineLines("answer", [*arguments, "--interactive"])
        self._ready = False
        self._unread = False
        """Whether lines of an answer are still to come that nobody waits for any more"""

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._engine.close()

    def forget(self) -> None:
        """Begin anew, with the system message alone."""
        self.messages = self._system
        self._begun += 1

    def mark(self) -> tuple[int, Conversation]:
        """Return where the conversation is, for `go_back`."""
        return self._begun, self.messages

    def go_back(self, mark: tuple[int, Conversation]) -> None:
        """Forget what was said since a mark, unless another conversation has begun."""
        begun, messages = mark
        if begun == self._begun:
            self.messages = messages

    def wait(self) -> None:
        """Wait until the model is loaded. Raises `EngineError` when it cannot be."""
        if not self._ready:
            self._engine.read()
            self._ready = True

    def _drop_rest(self) -> None:
        """Read an answer to its end that was broken off, by Ctrl-C or by closing the iterator."""
        while self._unread:
            with suppress(ValueError):  # a line of which the beginning went with the signal
                self._unread = "token" in self._engine.read()

    def ask(self, question: str) -> Iterator[str]:
        """Yield the pieces of the answer as they come. Then the question and the answer are a part of the conversation.

        Of an answer that is broken off neither is, and the next question waits until the process has written it.

        Raises `EngineError`, and `DataError` as `prompt_for` does.
        """
        asked, begun = (*self.messages, Message("user", question)), self._begun
        request = prompt_for(str(len(asked)), asked, self.model, self._opened, self._sampling)
        self.wait()
        self._drop_rest()
        self._engine.send(to_json(request))
        self._unread = True
        text, ids = "", list[int]()
        while True:
            line = self._engine.read()
            if "token" not in line:
                self._unread = False
                break
            ids.append(line["token"])
            longer = self._opened.tokenizer.decode(ids)
            if not longer.endswith(_UNFINISHED):
                yield longer[len(text) :]
                text = longer
        whole = self._opened.tokenizer.decode(from_json(line).ids)
        if whole != text:
            yield whole[len(text) :]
        if not whole.strip() or begun != self._begun:  # forgotten meanwhile
            return
        self.messages = (*asked, Message("assistant", whole.strip()))
