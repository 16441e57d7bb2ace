"""What a benchmark asks: questions with their options and the right one, and where they come from."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

Kind = Literal["choice", "words", "open"]
"""`choice`: options with letters; `words`: the options are words of their own (yes, no, maybe); `open`: an answer in words"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question of a benchmark."""

    id: str
    """The one that its row has, where that is short and of this row alone; else the row's number"""
    place: str
    """Where a person finds the row, such as ``FILE:LINE``"""
    question: str
    context: str = ""
    """What is read before it, such as an abstract"""
    system: str = ""
    """A system message that the row has"""
    options: tuple[str, ...] = ()
    """Without spaces around them; empty for an open question"""
    written: tuple[str, ...] = ()
    """The options as the row has them, spaces and all"""
    lettered: bool = False
    """The options are listed in the question, each with its letter; else they are words of their own, such as yes and no"""
    labels: tuple[str, ...] = ()
    """The letter, or the word, that stands for each option"""
    gold: int = -1
    """The place of the right option; -1 for an open question"""
    answer: str = ""
    """The right answer to an open question"""
    before_label: str = ""
    """What an answer of this row's kind says before its label, such as ``The answer is: ``"""
    subject: str = ""
    """Of MMLU"""

    @property
    def gold_label(self) -> str:
        """The label of the right option."""
        return self.labels[self.gold]

    def text(self) -> str:
        """Return all that is asked, by which it is looked for in other rows."""
        return "\n".join(filter(None, (self.context, self.question, *(self.options if self.lettered else ()))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A benchmark as it was read from files."""

    name: str
    title: str
    """What people call it"""
    kind: Kind
    questions: tuple[Question, ...]
    examples: tuple[Question, ...] = ()
    """Rows that are not asked, from which solved examples (`--shots`) are taken; none: from the questions themselves"""
    examples_of: str = ""
    """Where those are, in a few words"""
    examples_in_order: bool = False
    """Examples are the first ones of the subject, not drawn"""
    files: tuple[Path, ...]
    source: str = ""
    """Where the benchmark comes from, and under which license"""
    notes: tuple[str, ...] = ()
    """What a person should know of what was read, each in a sentence"""

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of all questions, each once."""
        return tuple(dict.fromkeys(label for question in self.questions for label in question.labels))


def sampled(task: Task, limit: int | None, seed: int) -> Task:
    """Return the task with so many questions of it, drawn by the seed and in their order; with all for None."""
    if limit is None or limit >= len(task.questions):
        return task
    places = sorted(random.Random(seed).sample(range(len(task.questions)), limit))
    return replace(
        task,
        questions=tuple(task.questions[place] for place in places),
        examples=task.examples or task.questions,
        examples_of=task.examples_of or "all questions of the file, never the one that is asked",
        notes=(*task.notes, f"{limit:,} of {len(task.questions):,} questions are asked, drawn with seed {seed}."),
    )


def first_by_hash(task: Task, limit: int) -> Task:
    """Return the task with the questions whose texts have the lowest hashes, `limit` of them, in their order.

    Which these are depends on no seed and no order, and hardly changes when a file gets more questions.
    """
    if limit >= len(task.questions):
        return task
    hashes = [hashlib.sha256(question.text().encode()).digest() for question in task.questions]
    chosen = sorted(sorted(range(len(hashes)), key=lambda place: (hashes[place], place))[:limit])
    note = f"{limit:,} of {len(task.questions):,} questions are asked, chosen by the hashes of their texts."
    return replace(task, questions=tuple(task.questions[place] for place in chosen), notes=(*task.notes, note))


def unique_ids(ids: Sequence[str | None], numbers: Sequence[int]) -> list[str]:
    """Return an id for each row: its own where it is one and no other row has it, else the row's number."""
    counts: dict[str | None, int] = {}
    for id_ in ids:
        counts[id_] = counts.get(id_, 0) + 1
    return [id_ if id_ is not None and counts[id_] == 1 else f"row {number}" for id_, number in zip(ids, numbers, strict=True)]
