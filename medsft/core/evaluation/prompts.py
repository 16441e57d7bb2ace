"""How a question is asked: in the template of the model, or in the words of EleutherAI's lm-evaluation-harness.

The harness's texts are those of its tasks `pubmedqa`, `medqa_4options`, `medmcqa` and `mmlu_*`; questions of one's own are
asked as in `medqa_4options`, and without options as its open tasks are. Solved examples (`--shots`) are turns of the
conversation in a template, and stand before the question with an empty line between them in the harness's text.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from medsft.core.data.sources.conversation import Conversation, Message
from medsft.core.data.sources.multiple_choice import asked_with_options
from medsft.core.evaluation.benchmark import Question, Task
from medsft.core.units import counted
from medsft.errors import ConfigError, Problem

Style = Literal["template", "lm-eval"]
Form = Literal["label", "text"]
"""By its label the options are listed in the question; by its text they are not, and each is tried as the answer."""
SEPARATOR = "\n\n"
_ASK_FOR_WORD = "Answer yes, no or maybe."


def shifted(question: Question, shift: int) -> Question:
    """Return a question whose options have moved so many places towards the first, cyclically; the labels stay."""
    count = len(question.options)
    order = [(place + shift) % count for place in range(count)]
    return replace(
        question,
        options=tuple(question.options[place] for place in order),
        written=tuple(question.written[place] for place in order),
        gold=(question.gold - shift) % count,
    )


@dataclass(frozen=True, slots=True)
class Examples:
    """Which solved examples stand before each question."""

    task: Task
    shots: int
    seed: int

    def __post_init__(self) -> None:
        """Raise ConfigError when there are too few rows for so many examples."""
        available = self._smallest_pool()
        if self.shots > available:
            hint = f"Rows that could be examples: {available}; ask for at most so many."
            many = counted(self.shots, "example")
            raise ConfigError([Problem("--shots", f"{self.task.title} has too few rows for {many}", hint)])

    def sentence(self) -> str:
        """Return where the examples come from; "" without any."""
        if not self.shots:
            return ""
        where = self.task.examples_of or "the questions themselves, never the one that is asked"
        how = "the first" if self.task.examples_in_order else f"drawn with seed {self.seed}"
        return f"{self.shots} solved examples before each question: {how}, from {where}."

    def of(self, question: Question) -> list[Question]:
        """Return the examples of a question, which is not one of them; the same ones for nearly all questions."""
        if not self.shots:
            return []
        task = self.task
        if task.examples_in_order:
            return [one for one in task.examples if one.subject == question.subject][: self.shots]
        pool = task.examples or task.questions
        drawn = random.Random(self.seed).sample(range(len(pool)), min(len(pool), self.shots + 1))
        return [pool[place] for place in drawn if pool[place].place != question.place][: self.shots]

    def _smallest_pool(self) -> int:
        task = self.task
        if not self.shots:
            return 0
        if task.examples_in_order:
            subjects = {question.subject for question in task.questions}
            return min(sum(one.subject == subject for one in task.examples) for subject in subjects)
        pool = task.examples or task.questions
        places = {question.place for question in task.questions}
        return len(pool) - any(one.place in places for one in pool)


def as_conversation(question: Question, form: Form, examples: Sequence[Question]) -> Conversation:
    """Return the messages that ask a question in a template, with solved examples as turns before it."""
    system = [Message("system", question.system)] if question.system else []
    turns = [
        message
        for example in examples
        for message in (Message("user", asked(example, form)), Message("assistant", solution(example, form), trained=False))
    ]
    return (*system, *turns, Message("user", asked(question, form)))


def asked(question: Question, form: Form) -> str:
    """Return what a person would write to ask a question; with options as rows of `--format mcq` are trained on."""
    if question.lettered:
        if form == "text":
            return question.question
        return asked_with_options(question.question, question.labels, question.options)
    if question.context:
        return f"Abstract: {question.context}\nQuestion: {question.question}\n{_ASK_FOR_WORD}"
    return question.question


def solution(question: Question, form: Form) -> str:
    """Return the right answer as rows of this kind have it."""
    if not question.options:
        return question.answer
    if question.options and not question.lettered:
        return question.before_label + question.gold_label
    text = question.options[question.gold]
    return text if form == "text" else f"{question.gold_label}. {text}"


def lm_eval_text(task: Task, question: Question, form: Form, examples: Sequence[Question]) -> str:
    """Return the text of the harness up to the answer."""
    solved = [f"{_lm_eval_question(task, one, form)} {_lm_eval_answer(one, form)}{SEPARATOR}" for one in examples]
    return "".join((_lm_eval_description(task, question), *solved, _lm_eval_question(task, question, form)))


def _lm_eval_description(task: Task, question: Question) -> str:
    if task.name != "mmlu" or not question.subject:
        return ""
    subject = question.subject.replace("_", " ")
    return f"The following are multiple choice questions (with answers) about {subject}.{SEPARATOR}"


def _lm_eval_question(task: Task, question: Question, form: Form) -> str:
    if question.options and not question.lettered:
        if question.context:
            return f"Abstract: {question.context}\nQuestion: {question.question}\nAnswer:"
        return f"Question: {question.question}\nAnswer:"
    if form == "text" or not question.options:
        return f"Question: {question.question}\nAnswer:"
    lines = "".join(f"{label}. {option}\n" for label, option in zip(question.labels, question.written, strict=True))
    if task.name == "mmlu":
        return f"{question.question.strip()}\n{lines}Answer:"
    if task.name == "medmcqa":
        return f"Question: {question.question}\nChoices:\n{lines}Answer:"
    return f"Question: {question.question}\n{lines}Answer:"


def _lm_eval_answer(question: Question, form: Form) -> str:
    if not question.options:
        return question.answer
    return question.written[question.gold] if form == "text" else question.gold_label
