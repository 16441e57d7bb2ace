"""What `--seq` and `--turns` make of documents, as far as lengths and the places of answers say: no token is read here.

Lengths are tokens. A document of n tokens gives n - 1 labels, that is pairs (token, next token): the first token is never
predicted. A conversation fits `seq` when n - 1 <= seq, and is cut to at most seq + 1 tokens otherwise. A text is never cut: it
is read in pieces of `seq` labels, of which each begins with the last token of the one before, so that every token but the
first is predicted once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medsft.core.data.dataset.answers import Answers
from medsft.core.units import count

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlines:
    """What can be known of documents without reading their tokens."""

    lengths: _Ints
    """Tokens of each, [documents]"""
    answers: Answers
    """Where their answers lie, in the order of documents and tokens"""
    texts: npt.NDArray[np.bool_]
    """Whether each is plain text and no conversation, [documents]"""

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def num_turns(self) -> _Ints:
        """Answers of each document, each of which ends a turn, [documents]; a text has 1."""
        return np.bincount(self.answers.document, minlength=len(self)).astype(np.int64)

    @property
    def own_answers(self) -> Answers:
        """The last answer of each document."""
        return last_answers(self.answers, self.lengths)

    def exceeding(self, seq: int) -> npt.NDArray[np.bool_]:
        """Tell which documents do not fit `seq`, [documents]: no text is among them."""
        return (self.lengths > seq + 1) & ~self.texts


def cut_lengths(outlines: Outlines, seq: int, *, whole_turns: bool = True) -> _Ints:
    """Return how many tokens of each document are left where documents that do not fit `seq` are cut, [documents].

    With `whole_turns` a document of several answers is cut behind the last of them whose end token fits; what follows that
    token in the answer's role stays as far as it fits. One that has no such answer, one of a single answer, and without
    `whole_turns` all are cut to seq + 1 tokens.
    """
    limit = seq + 1
    lengths = np.where(outlines.texts, outlines.lengths, np.minimum(outlines.lengths, limit))
    answers = outlines.answers
    if whole_turns and len(answers) and (in_turns := outlines.exceeding(seq) & (outlines.num_turns > 1)).any():
        whole = in_turns[answers.document] & (answers.end <= limit) & (answers.end > 1)
        behind = np.zeros(len(outlines), np.int64)
        np.maximum.at(behind, answers.document[whole], np.minimum(answers.behind[whole], limit))
        lengths = np.where(behind > 0, behind, lengths)
    return lengths


def last_answers(answers: Answers, lengths: _Ints) -> Answers:
    """Return of each document the last answer of which its first `lengths` tokens, [documents], predict a token."""
    left = answers.where(answers.labels_within(lengths) > 0)
    return left.where(np.append(np.diff(left.document) != 0, True)[: len(left)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """Runs of tokens that are read on their own: a document, what is left of it, or a piece of a text."""

    documents: _Ints
    """Number of the document that each is of, [n]"""
    starts: _Ints
    """Place of its first token in the document, [n]"""
    lengths: _Ints
    """Tokens, [n]"""


def in_pieces(lengths: _Ints, texts: npt.NDArray[np.bool_], seq: int) -> Pieces:
    """Return what is read of documents of these lengths, [documents], in their order; only texts, [documents], are divided."""
    if not texts.any():
        return Pieces(documents=np.arange(len(lengths)), starts=np.zeros_like(lengths), lengths=lengths)
    numbers = np.where(texts, np.maximum(1, -(-(lengths - 1) // seq)), 1)
    documents = np.repeat(np.arange(len(lengths)), numbers)
    first = np.cumsum(numbers) - numbers
    starts = (np.arange(len(documents)) - first[documents]) * seq
    left = lengths[documents] - starts
    return Pieces(
        documents=documents, starts=starts, lengths=np.where(texts[documents], np.minimum(left, seq + 1), left).astype(np.int64)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CutAnswers:
    """What cutting takes from the answers of some documents."""

    documents: int
    """Documents that are cut"""
    lost: int
    """Answers of which nothing is left to predict: their turns are cut away, or only what stands before them fits"""
    parts: int
    """Answers that lose some of their tokens"""
    endless: int
    """Those of `parts` that lose the token that ends them: a model learns from those never to stop"""
    turns: tuple[tuple[int, int], ...]
    """(number of a turn from 1, documents of several turns that are cut from that one on)"""

    @property
    def in_words(self) -> str:
        """What answers lose, and where several turns are cut."""
        what = f"Answers lost whole: {count(self.lost)}; in part: {count(self.parts)}"
        shown = [f"from turn {count(turn)} on: {count(documents)}" for turn, documents in self.turns[:_SHOWN_TURNS]]
        if later := sum(documents for _, documents in self.turns[_SHOWN_TURNS:]):
            shown.append(f"from a later one on: {count(later)}")
        turns = f" Conversations of several turns, cut {'; '.join(shown)}." if shown else ""
        return f"{what}, of these without their end: {count(self.endless)}.{turns}"


_SHOWN_TURNS = 5


def cut_answers(outlines: Outlines, lengths: _Ints) -> CutAnswers:
    """Count what answers lose where each document is cut to `lengths` tokens, [documents]; one of 0 is not looked at."""
    answers, left = outlines.answers, lengths[outlines.answers.document]
    cut = (left > 0) & (answers.behind > left)
    lost = cut & (np.maximum(answers.first, 1) >= left)
    turn = answers.turns
    several = outlines.num_turns[answers.document] > 1
    begins = cut & several & ~np.append(False, (cut[:-1] & (np.diff(answers.document) == 0)))[: len(cut)]
    numbers, documents = np.unique(turn[begins], return_counts=True)
    return CutAnswers(
        documents=int(((lengths > 0) & (outlines.lengths > lengths)).sum()),
        lost=int(lost.sum()),
        parts=int((cut & ~lost).sum()),
        endless=int((cut & ~lost & (answers.end > left)).sum()),
        turns=tuple(zip(numbers.tolist(), documents.tolist(), strict=True)),
    )
