"""Figures of one model on one task, and of two models on the same questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from medsft.core.evaluation.asking import Asking, Method, Reply
from medsft.core.evaluation.benchmark import Question
from medsft.core.evaluation.statistics import (
    Calibration,
    Interval,
    calibration,
    difference_interval,
    holm,
    macro_f1,
    mcnemar_p,
    mean_interval,
    recall_by_label,
    softmax,
    wilson_interval,
)


@dataclass(frozen=True, slots=True)
class Share:
    """A share of questions with its 95 % interval."""

    value: float
    interval: Interval
    questions: int

    @classmethod
    def of(cls, right: Sequence[bool]) -> Share:
        """Return the share of questions that are right, with its Wilson interval."""
        return cls(sum(right) / len(right) if right else 0.0, wilson_interval(sum(right), len(right)), len(right))

    def to_json(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return {"accuracy": self.value, "interval": list(self.interval), "n": self.questions}


@dataclass(frozen=True, slots=True)
class Shifts:
    """What becomes of answers when the options stand in other orders."""

    accuracy: float
    """Over all cyclic orders"""
    always: float
    """Share of questions that are right in every order"""
    chosen: Mapping[str, float]
    """Label -> how often the option in its place is chosen, over all orders; without a bias all are the same"""


@dataclass(frozen=True, slots=True)
class Overlap:
    """Questions that are among the rows that a model was trained on."""

    rows: Sequence[bool] | None
    """Of each question; None where nobody could look"""
    note: str = ""
    """What was compared, or why nothing was"""


NO_OVERLAP = Overlap(None, "No training set is known of this model.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Figures of one model on one task, by one method. Shares are from 0 to 1."""

    model: str
    task: str
    title: str
    method: Method
    right: tuple[bool, ...]
    """Of each question"""
    accuracy: Share
    macro_f1: float | None
    majority: float | None
    """Accuracy of always choosing the most frequent label"""
    majority_label: str
    invalid: float
    calibration: Calibration | None
    recall: Mapping[str, tuple[float, int]]
    by_text: Share | None
    """With each option's text as the answer, a byte"""
    shifts: Shifts | None
    f1: Share | None
    """Of an open question: mean F1 of the words"""
    overlap: Overlap
    cut: int
    """Requests whose beginning the model did not read"""

    @property
    def share_of_overlap(self) -> float | None:
        """Share of the questions that are among the rows of the training set."""
        return None if self.overlap.rows is None else sum(self.overlap.rows) / len(self.right)

    def without_overlap(self) -> Share | None:
        """Return the accuracy on the other questions; None where nobody could look."""
        return self._part(False)

    def with_overlap(self) -> Share | None:
        """Return the accuracy on the overlapping questions alone."""
        return self._part(True)

    def _part(self, overlapping: bool) -> Share | None:
        if self.overlap.rows is None:
            return None
        return Share.of([right for right, one in zip(self.right, self.overlap.rows, strict=True) if bool(one) == overlapping])

    def to_json(self) -> dict[str, Any]:
        """Return the figures for programs."""
        without, with_ = self.without_overlap(), self.with_overlap()
        return {
            "model": self.model,
            "task": self.task,
            "method": self.method,
            "n": len(self.right),
            "accuracy": self.accuracy.value,
            "interval": list(self.accuracy.interval),
            "macro_f1": self.macro_f1,
            "majority": self.majority,
            "majority_label": self.majority_label or None,
            "invalid": self.invalid,
            "ece": self.calibration.error if self.calibration else None,
            "reliability": [
                {"low": one.low, "high": one.high, "n": one.answers, "confidence": one.confidence, "accuracy": one.accuracy}
                for one in (self.calibration.bins if self.calibration else ())
                if one.answers
            ],
            "recall": {label: {"recall": share, "n": count} for label, (share, count) in self.recall.items()},
            "by_text": self.by_text.to_json() if self.by_text else None,
            "shifts": {"accuracy": self.shifts.accuracy, "always": self.shifts.always, "chosen": dict(self.shifts.chosen)}
            if self.shifts
            else None,
            "f1": {"f1": self.f1.value, "interval": list(self.f1.interval)} if self.f1 else None,
            "overlap": self.share_of_overlap,
            "overlap_note": self.overlap.note,
            "accuracy_without_overlap": without.to_json() if without and without.questions else None,
            "accuracy_of_overlap": with_.to_json() if with_ and with_.questions else None,
            "cut": self.cut,
        }


def measure(model: str, asking: Asking, method: Method, overlap: Overlap) -> Result:
    """Return the figures of a model whose replies are complete."""
    task, questions, replies = asking.task, asking.task.questions, asking.replies
    if task.kind == "open":
        return _measure_open(model, asking, overlap)
    likely = method == "likelihood"
    by_label = likely and (task.kind == "words" or "label" in asking.ask.forms)
    places = [_chosen(reply, likely, by_label) for reply in replies]
    right = tuple(place == question.gold for place, question in zip(places, questions, strict=True))
    gold = [question.gold_label for question in questions]
    chosen = [None if place is None else question.labels[place] for place, question in zip(places, questions, strict=True)]
    most, times = Counter(gold).most_common(1)[0]
    texts = [reply.text == question.gold for reply, question in zip(replies, questions, strict=True) if reply.text is not None]
    return Result(
        model=model,
        task=task.name,
        title=task.title,
        method=method,
        right=right,
        accuracy=Share.of(right),
        macro_f1=macro_f1(gold, chosen),
        majority=times / len(gold),
        majority_label=most,
        invalid=sum(place is None for place in places) / len(places),
        calibration=_calibration(replies, right) if by_label else None,
        recall=recall_by_label(gold, chosen),
        by_text=Share.of(texts) if likely and by_label and texts else None,
        shifts=_shifts(questions, replies) if likely and by_label and asking.ask.shifts and task.kind == "choice" else None,
        f1=None,
        overlap=overlap,
        cut=asking.cut,
    )


def _chosen(reply: Reply, likely: bool, by_label: bool) -> int | None:
    if not likely:
        return reply.generated
    return reply.label if by_label else reply.text


def _measure_open(model: str, asking: Asking, overlap: Overlap) -> Result:
    right = tuple(reply.exact for reply in asking.replies)
    scores = [reply.f1 for reply in asking.replies]
    return Result(
        model=model,
        task=asking.task.name,
        title=asking.task.title,
        method="generate",
        right=right,
        accuracy=Share.of(right),
        macro_f1=None,
        majority=None,
        majority_label="",
        invalid=0.0,
        calibration=None,
        recall={},
        by_text=None,
        shifts=None,
        f1=Share(float(np.mean(scores)), mean_interval(scores), len(scores)),
        overlap=overlap,
        cut=asking.cut,
    )


def _calibration(replies: Sequence[Reply], right: Sequence[bool]) -> Calibration:
    return calibration([float(softmax(reply.scores).max()) for reply in replies], right)


def _shifts(questions: Sequence[Question], replies: Sequence[Reply]) -> Shifts:
    hits, asked, always = 0, 0, 0
    chosen: Counter[str] = Counter()
    for question, reply in zip(questions, replies, strict=True):
        right = [place == question.gold for place in reply.shifts.values()]
        hits, asked, always = hits + sum(right), asked + len(right), always + all(right)
        count = len(question.options)
        chosen.update(question.labels[(place - shift) % count] for shift, place in reply.shifts.items())
    labels = dict.fromkeys(label for question in questions for label in question.labels)
    return Shifts(hits / asked, always / len(questions), {label: chosen[label] / asked for label in labels})


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two models on the same questions of a task."""

    a: str
    b: str
    task: str
    method: Method
    difference: float
    """Accuracy of b less that of a"""
    interval: Interval
    p: float
    """Exact, of McNemar's test"""
    gained: int
    """Questions that only b has right"""
    lost: int
    """Questions that only a has right"""
    p_holm: float = 1.0
    """p after Holm's correction for all pairs of the call"""

    def to_json(self) -> dict[str, Any]:
        """Return the figures for programs."""
        return {
            "a": self.a,
            "b": self.b,
            "task": self.task,
            "method": self.method,
            "difference": self.difference,
            "interval": list(self.interval),
            "p": self.p,
            "p_holm": self.p_holm,
            "gained": self.gained,
            "lost": self.lost,
        }


def compare(results: Sequence[Result]) -> list[Pair]:
    """Return each two models on each task and method, the earlier one as `a`."""
    pairs = [
        _pair(a, b)
        for a, b in combinations(results, 2)
        if (a.task, a.method) == (b.task, b.method) and a.model != b.model and len(a.right) == len(b.right)
    ]
    corrected = holm([pair.p for pair in pairs])
    return [replace(pair, p_holm=p) for pair, p in zip(pairs, corrected, strict=True)]


def _pair(a: Result, b: Result) -> Pair:
    gained = sum(now and not before for before, now in zip(a.right, b.right, strict=True))
    lost = sum(before and not now for before, now in zip(a.right, b.right, strict=True))
    questions = len(a.right)
    return Pair(
        a=a.model,
        b=b.model,
        task=a.task,
        method=a.method,
        difference=(gained - lost) / questions,
        interval=difference_interval(gained, lost, questions),
        p=mcnemar_p(gained, lost),
        gained=gained,
        lost=lost,
    )
