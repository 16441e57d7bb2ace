"""Questions as requests to a model, and its answers as what they mean for each question.

Task --requests--> Score, Generate --model--> Scored, Generated --take--> Reply of each question
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np

from medsft.core.data.dataset.encode import encode_prompt
from medsft.core.data.tokenizers.base import OpenedTokenizer
from medsft.core.data.tokenizers.template import Role, Segment
from medsft.core.evaluation.answer_ids import answered
from medsft.core.evaluation.benchmark import Question, Task
from medsft.core.evaluation.parse import chosen_option, normalized, token_f1
from medsft.core.evaluation.prompts import Examples, Form, Style, as_conversation, lm_eval_text, shifted
from medsft.core.evaluation.requests import Answer, Generate, Generated, Request, Score, cut_at
from medsft.errors import ConfigError, Problem

Method = Literal["likelihood", "generate"]
LM_EVAL_STOPS = ("\n",)
"""An answer after the harness's text is one line."""
_AT_ONCE = 256
"""Questions that are encoded together"""
_ID = "{task}/{method}/{number}/{shift}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """How a model is asked."""

    style: Style = "template"
    methods: tuple[Method, ...] = ("likelihood",)
    forms: tuple[Form, ...] = ("label", "text")
    """Of likelihood, for options with letters; others are asked by their words"""
    shifts: bool = False
    """Ask with the options in all cyclic orders, too"""
    shots: int = 0
    seed: int = 1234
    max_new_tokens: int = 256


class _Asked(NamedTuple):
    """What a request is about."""

    number: int
    """Of the question in the task"""
    method: Literal["label", "text", "generate"]
    shift: int


@dataclass(slots=True)
class Reply:
    """What a model has answered to one question. It holds no text."""

    label: int | None = None
    """The option that is most likely by its label"""
    scores: tuple[float, ...] = ()
    """Sum of log p of each label, in nats"""
    text: int | None = None
    """The option that is most likely by its text, a byte"""
    shifts: dict[int, int] = field(default_factory=dict)
    """Shift -> the option that is most likely by its label, numbered as in the question without a shift"""
    generated: int | None = None
    """The option that the written answer chooses; None for an invalid one"""
    exact: bool = False
    """Of an open question: the written answer is the right one, normalized"""
    f1: float = 0.0


@dataclass(slots=True)
class Asking:
    """The requests of one task to one model, and the replies so far."""

    task: Task
    ask: Ask
    opened: OpenedTokenizer
    requests: list[Request]
    replies: list[Reply]
    cut: int
    """Requests whose beginning was cut off, as the model reads no more"""
    _asked: dict[str, _Asked]

    @property
    def methods(self) -> tuple[Method, ...]:
        """How the task is asked: an open question has no options to be scored."""
        return ("generate",) if self.task.kind == "open" else self.ask.methods

    def prompt_sha256(self) -> str:
        """Return a hash of everything that is asked."""
        total = hashlib.sha256()
        for request in self.requests:
            parts = (request.prefix, *request.continuations) if isinstance(request, Score) else (request.prompt,)
            for ids in parts:
                total.update(np.asarray(ids, np.int64).tobytes() + b"|")
        return total.hexdigest()

    def take(self, answer: Answer) -> None:
        """Note what an answer means."""
        number, method, shift = self._asked[answer.id]
        question, reply = self.task.questions[number], self.replies[number]
        if isinstance(answer, Generated):
            self._take_text(question, reply, answer)
        elif method == "text":
            sizes = [len(text.encode()) for text in self._texts(question)]
            reply.text = int(np.argmax([total / size for total, size in zip(answer.log_likelihoods, sizes, strict=True)]))
        else:
            best = int(np.argmax(answer.log_likelihoods))
            if shift:
                reply.shifts[shift] = (best + shift) % len(question.options)
            else:
                reply.label, reply.scores = best, answer.log_likelihoods
                reply.shifts[0] = best

    def _texts(self, question: Question) -> Sequence[str]:
        return question.options if self.ask.style == "template" else question.written

    def _take_text(self, question: Question, reply: Reply, answer: Generated) -> None:
        text = self.opened.tokenizer.decode(answer.ids)
        if self.ask.style == "lm-eval":
            text = cut_at(text, LM_EVAL_STOPS)
        if question.options:
            reply.generated = chosen_option(text, question.labels, question.options)
        else:
            reply.exact = normalized(text) == normalized(question.answer)
            reply.f1 = token_f1(text, question.answer)


def asking(
    task: Task, ask: Ask, opened: OpenedTokenizer, ends: Sequence[int], longest: int, *, before_text: tuple[int, ...] = ()
) -> Asking:
    """Return the requests for a task. `longest` is how many tokens the model reads, `ends` end a written answer.

    The ids `before_text` stand before the harness's text. Raises ConfigError for too few rows for examples and for written
    answers as long as all that the model reads, DataError for what a template cannot write.
    """
    made = Asking(task, ask, opened, [], [Reply() for _ in task.questions], 0, {})
    if "generate" in made.methods and ask.max_new_tokens >= longest:
        message = f"{ask.max_new_tokens:,} tokens of an answer leave no room for a question"
        raise ConfigError([Problem("--max_new_tokens", message, f"The model reads {longest:,} tokens of both together.")])
    examples = Examples(task, ask.shots, ask.seed)
    plan = list(_plan(task, ask, made.methods))
    for start in range(0, len(plan), _AT_ONCE):
        some = plan[start : start + _AT_ONCE]
        questions = [
            shifted(task.questions[one.number], one.shift) if one.shift else task.questions[one.number] for one in some
        ]
        solved = [examples.of(question) for question in questions]
        if ask.style == "template":
            requests = _in_template(questions, solved, some, made, ends)
        else:
            requests = _as_lm_eval(questions, solved, some, made, ends, before_text)
        for one, request in zip(some, requests, strict=True):
            fitting = _fitting(request, longest)
            made.cut += fitting is not request
            made.requests.append(fitting)
            made._asked[request.id] = one
    return made


def _plan(task: Task, ask: Ask, methods: Sequence[Method]) -> Iterator[_Asked]:
    for number, question in enumerate(task.questions):
        if "likelihood" in methods:
            if question.lettered:
                if "label" in ask.forms:
                    yield from (_Asked(number, "label", shift) for shift in range(len(question.options) if ask.shifts else 1))
                if "text" in ask.forms:
                    yield _Asked(number, "text", 0)
            else:
                yield _Asked(number, "label", 0)
        if "generate" in methods:
            yield _Asked(number, "generate", 0)


def _id(task: Task, one: _Asked) -> str:
    return _ID.format(task=task.name, method=one.method, number=one.number, shift=one.shift)


def _answers(question: Question, form: Form) -> list[str]:
    """Return what the assistant would say, for each option."""
    if form == "text":
        return list(question.options)
    return [question.before_label + label for label in question.labels]


def _form(one: _Asked) -> Form:
    return "text" if one.method == "text" else "label"


def _in_template(
    questions: Sequence[Question], solved: Sequence[list[Question]], some: Sequence[_Asked], made: Asking, ends: Sequence[int]
) -> list[Request]:
    """Return requests in the template: an option is the answer up to the token that ends it, behind what all options share."""
    opened = made.opened
    conversations = [as_conversation(q, _form(one), s) for q, s, one in zip(questions, solved, some, strict=True)]
    scored = [number for number, one in enumerate(some) if one.method != "generate"]
    # For the text an empty answer, too: its end is where an answer begins.
    wanted = [
        [*_answers(questions[number], _form(some[number])), *([""] if some[number].method == "text" else [])]
        for number in scored
    ]
    documents = iter(answered([conversations[number] for number in scored], wanted, opened))
    requests: list[Request] = []
    for conversation, one in zip(conversations, some, strict=True):
        id_ = _id(made.task, one)
        if one.method == "generate":
            prompt = tuple(encode_prompt(conversation, opened))
            requests.append(Generate(id=id_, prompt=prompt, max_new_tokens=made.ask.max_new_tokens, ends=tuple(ends)))
            continue
        answers = next(documents)
        shared = _shared(answers)
        if one.method == "text":  # compared a byte, so what the options share counts; by their labels it cancels out
            *answers, empty = answers
            shared = min(_shared(answers), _shared([(*empty, -1), *answers]))
        requests.append(Score(id=id_, prefix=answers[0][:shared], continuations=tuple(ids[shared:] for ids in answers)))
    return requests


def _shared(texts: Sequence[tuple[int, ...]]) -> int:
    """Return with how many tokens all texts begin, at least one of each left over."""
    for place, tokens in enumerate(zip(*(text[:-1] for text in texts), strict=False)):
        if len(set(tokens)) > 1:
            return place
    return min(map(len, texts)) - 1


def _as_lm_eval(
    questions: Sequence[Question],
    solved: Sequence[list[Question]],
    some: Sequence[_Asked],
    made: Asking,
    ends: Sequence[int],
    before: tuple[int, ...],
) -> list[Request]:
    """Return requests in the harness's text. An option's tokens are those of the whole text behind the question's number."""
    contexts = [lm_eval_text(made.task, q, _form(one), s) for q, s, one in zip(questions, solved, some, strict=True)]
    texts = list(contexts)
    for asked, question, one in zip(contexts, questions, some, strict=True):
        if one.method != "generate":
            texts += [f"{asked} {option}" for option in (question.written if one.method == "text" else question.labels)]
    ids = [tuple(one.tolist()) for one in made.opened.tokenizer.encode([_plain(text) for text in texts])]
    wholes = iter(ids[len(contexts) :])
    requests: list[Request] = []
    for question, one, context in zip(questions, some, ids[: len(contexts)], strict=True):
        id_ = _id(made.task, one)
        if one.method == "generate":
            most, stops = made.ask.max_new_tokens, LM_EVAL_STOPS
            prompt = before + context
            requests.append(Generate(id=id_, prompt=prompt, max_new_tokens=most, ends=tuple(ends), stop_strings=stops))
        else:
            continuations = tuple(_behind(whole, context) for whole in islice(wholes, len(question.options)))
            requests.append(Score(id=id_, prefix=before + context, continuations=continuations))
    return requests


def _behind(whole: tuple[int, ...], context: tuple[int, ...]) -> tuple[int, ...]:
    """Return the tokens behind as many as the context has; the last one where there are no more."""
    return whole[min(len(context), len(whole) - 1) :]


def _plain(text: str) -> Segment:
    return Segment(text, Role.QUESTION, ((0, len(text)),))


def _fitting(request: Request, longest: int) -> Request:
    """Return a request whose text, with what may follow, is no longer than the model reads: its beginning goes."""
    if isinstance(request, Score):
        room = max(1, longest - max(map(len, request.continuations)))
        if len(request.prefix) <= room:
            return request
        return Score(id=request.id, prefix=request.prefix[-room:], continuations=request.continuations)
    room = max(1, longest - request.max_new_tokens)
    if len(request.prompt) <= room:
        return request
    return Generate(
        id=request.id,
        prompt=request.prompt[-room:],
        max_new_tokens=request.max_new_tokens,
        ends=request.ends,
        stop_strings=request.stop_strings,
    )
