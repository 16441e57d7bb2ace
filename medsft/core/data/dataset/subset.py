"""The documents of a set that a run uses: those that `--truncate` keeps, as `--seq` cuts or divides them.

`as_read` is the one rule for that and for what `--turns` trains on: plans count by it, micro-batches get their weights by it,
and reports and samples show it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from medsft.core.config.run_config import RunConfig
from medsft.core.data.dataset.answers import supervised
from medsft.core.data.dataset.outlines import CutAnswers, Outlines, cut_answers, cut_lengths, in_pieces, last_answers
from medsft.core.units import counted
from medsft.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a run reads documents: what decides which of their tokens it uses, and which of these it trains on."""

    seq: int
    """Labels that fit"""
    truncate: str = "error"
    """What becomes of a conversation that does not fit: `error`, `drop` or `keep`"""
    turns: str = "all"
    """The answers of a document that are trained on: all, or the last (`last` and `split`)"""
    whole_turns: bool = True
    """See `outlines.cut_lengths`"""
    loss_mask: float = 0.0
    """Weight of tokens that are not trained on as answers are"""

    @classmethod
    def of(cls, config: RunConfig) -> Reading:
        """Return how the run of a config reads documents."""
        return cls(
            seq=config.seq,
            truncate=config.truncate,
            turns=config.turns,
            whole_turns=config.rules.cuts_whole_turns,
            loss_mask=config.loss_mask,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Subset:
    """Some documents of a set, and pieces of texts, at positions.

    Position p is `lengths[p]` tokens of document `indices[p]` from its token `starts[p]` on.
    """

    indices: npt.NDArray[np.int64]
    """Numbers of the documents in the set, [n]; the pieces of a text have the same"""
    starts: npt.NDArray[np.int64]
    """Place of the first token in the document, [n]; 0 but for later pieces of a text"""
    lengths: npt.NDArray[np.int64]
    """Tokens, [n]; at most seq + 1 of what a run uses"""
    trained_from: npt.NDArray[np.int64]
    """Place in the document from which answers are trained on, [n]; 0 where all of them are"""
    answer_labels: npt.NDArray[np.int64]
    """Tokens of each that are trained on as an answer and predicted by another, [n]; 0 in an estimate, where nobody knows"""
    left_out: int = 0
    """Documents of the set that `--truncate` leaves out"""

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def num_labels(self) -> npt.NDArray[np.int64]:
        """(token, next token) pairs of each position: its tokens less one, [n]."""
        return self.lengths - 1

    @property
    def supervised(self) -> npt.NDArray[np.bool_]:
        """Whether each has an answer token to train on, [n]."""
        return self.answer_labels > 0

    @property
    def documents(self) -> npt.NDArray[np.int64]:
        """Numbers of the documents in the set, ascending, each once."""
        return np.unique(self.indices)

    def span(self, position: int) -> slice:
        """Return which tokens of its document a position has."""
        start = int(self.starts[position])
        return slice(start, start + int(self.lengths[position]))

    def trained(self, position: int, roles: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.bool_]:
        """Tell which labels of a position are trained on as answers are, bool [labels]; `roles` are those of its document."""
        span = self.span(position)
        answer = supervised(roles[span.start + 1 : span.stop])
        answer[: max(0, int(self.trained_from[position]) - span.start - 1)] = False
        return answer

    def at(self, positions: npt.NDArray[np.int64]) -> Subset:
        """Return these positions, in their order."""
        return Subset(
            indices=self.indices[positions],
            starts=self.starts[positions],
            lengths=self.lengths[positions],
            trained_from=self.trained_from[positions],
            answer_labels=self.answer_labels[positions],
            left_out=self.left_out,
        )


def as_read(outlines: Outlines, reading: Reading) -> Subset:
    """Return all of these documents as a run reads them: what fits, what `--truncate keep` leaves, and texts in pieces.

    Conversations that the other policies refuse or leave out are whole.
    """
    keeps = reading.truncate == "keep"
    lengths = cut_lengths(outlines, reading.seq, whole_turns=reading.whole_turns) if keeps else outlines.lengths
    trained, trained_from = outlines.answers, np.zeros(len(outlines), np.int64)
    if reading.turns != "all":
        trained = last_answers(trained, lengths)
        trained_from[trained.document] = trained.first
        lost = _without_own_turn(outlines, reading, lengths)
        trained = trained.where(~lost[trained.document])
        trained_from[lost] = lengths[lost]
    labels = trained.labels(lengths)
    pieces = in_pieces(lengths, outlines.texts, reading.seq)
    divided = outlines.texts[pieces.documents]
    return Subset(
        indices=pieces.documents,
        starts=pieces.starts,
        lengths=pieces.lengths,
        trained_from=np.where(divided, 0, trained_from[pieces.documents]),
        answer_labels=np.where(divided, np.maximum(0, pieces.lengths - 1), labels[pieces.documents]),
    )


def apply_truncation(outlines: Outlines, reading: Reading, *, flag: str = "--data") -> Subset:
    """Choose the documents of a run.

    The policy `error` raises DataError if a conversation exceeds `seq` or a document has nothing to train on. `drop` leaves
    those out. `keep` cuts on the right; where `split` made a document of each turn, it leaves out those whose own turn is cut
    away. Nothing to train on has a document of fewer than 2 tokens and, when only answers weigh (`loss_mask` 0), one without
    an answer token that another predicts; `keep` leaves out the former alone. `flag` names the set in the message. Whatever
    the policy and the weight, a subset without a single answer token to train on is refused.
    """
    cut = as_read(outlines, replace(reading, truncate="keep"))
    exceeds, empty = outlines.exceeding(reading.seq)[cut.indices], cut.lengths < 2
    useless = empty | ~cut.supervised if reading.loss_mask == 0 else empty
    if reading.truncate == "error" and (exceeds.any() or useless.any()):
        raise _not_all_fit(outlines, reading, len(np.unique(cut.indices[useless])), flag)
    if reading.truncate == "keep":
        lengths = cut_lengths(outlines, reading.seq, whole_turns=reading.whole_turns)
        unusable = empty | _without_own_turn(outlines, reading, lengths)[cut.indices]
    else:
        unusable = exceeds | useless
    subset = cut.at(np.flatnonzero(~unusable))
    if not len(subset):
        raise DataError(f"{flag}: no document is left to use at --seq {reading.seq}", hint="raise --seq")
    refuse_unsupervised(subset, reading.seq, flag)
    return replace(subset, left_out=len(outlines) - len(subset.documents))


def _without_own_turn(outlines: Outlines, reading: Reading, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Tell which documents of a split conversation lose the turn that they were made for when cut to `lengths`, [documents].

    The earlier turns that are left of such a document have documents of their own: they are not trained on in this one, too.
    """
    without = np.zeros(len(outlines), bool)
    if reading.turns == "split":
        without = outlines.num_turns > 1
        own = outlines.own_answers
        without[own.document[own.labels_within(lengths) > 0]] = False
    return without


def refuse_unsupervised(subset: Subset, seq: int, flag: str) -> None:
    """Raise DataError unless some document has an answer token to train on: without, the loss would be that of nothing."""
    if not subset.supervised.any():
        raise DataError(
            f"{flag}: not one of the {len(subset.documents):,} documents has an answer token to train on at --seq {seq}",
            hint="raise --seq so that answers are not cut away; `medsft inspect` shows how documents fit",
        )


def count_cut(outlines: Outlines, reading: Reading, documents: npt.NDArray[np.int64] | None = None) -> CutAnswers:
    """Count what `--truncate keep` takes from the answers of these documents, or of all.

    Of a document that was made for one turn (`split`) the answer of that turn counts alone.
    """
    lengths = cut_lengths(outlines, reading.seq, whole_turns=reading.whole_turns)
    if documents is not None:
        others = np.ones(len(outlines), bool)
        others[documents] = False
        lengths[others] = 0
    if reading.turns == "split":
        outlines = replace(outlines, answers=outlines.own_answers)
    return cut_answers(outlines, lengths)


def cut_sentence(outlines: Outlines, subset: Subset, reading: Reading, flag: str) -> list[str]:
    """Say how many documents of a subset are cut, and what their answers lose; nothing where none is cut."""
    cut = count_cut(outlines, reading, subset.documents)
    if not cut.documents:
        return []
    return [f"{flag}: {counted(cut.documents, 'document is', 'documents are')} cut at --seq {reading.seq}. {cut.in_words}"]


def _not_all_fit(outlines: Outlines, reading: Reading, useless: int, flag: str) -> DataError:
    cut, exceeding = count_cut(outlines, reading), outlines.exceeding(reading.seq)
    longest = int(outlines.lengths[exceeding].max(initial=0)) - 1
    counts = [
        (int(exceeding.sum()), f"longer than --seq {reading.seq} (the longest needs --seq {longest})"),
        (cut.lost, "answers would be lost whole"),
        (cut.parts, "answers would lose a part"),
        (cut.endless, "of these would lose their end"),
        (useless, "would have nothing to train on"),
    ]
    lines = "\n".join(f"  {amount:>8,} {what}" for amount, what in counts if amount)
    return DataError(
        f"{flag}: not all of the {len(outlines):,} documents can be used as they are:\n{lines}",
        hint="raise --seq, leave such documents out with --truncate drop, or cut them with --truncate keep",
    )
