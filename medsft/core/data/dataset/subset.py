"""The documents of a set that a run uses: those that `--truncate` keeps, each cut to `--seq`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from medsft.core.data.dataset.dataset import TokenizedDataset
from medsft.core.data.dataset.lengths import LengthReport, length_report
from medsft.core.units import count
from medsft.errors import DataError

Truncate = Literal["error", "drop", "keep"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subset:
    """Some documents of a set. Position p is document `indices[p]`, of which the first `lengths[p]` tokens are used."""

    indices: npt.NDArray[np.int64]
    """Numbers of the documents in the set, [n]"""
    lengths: npt.NDArray[np.int64]
    """Tokens, at most seq + 1, [n]"""
    answer_labels: npt.NDArray[np.int64]
    """Tokens of each that belong to an answer and are predicted by another, [n]; 0 in an estimate, where nobody knows"""
    left_out: int = 0
    """Documents of the set that `--truncate` leaves out"""

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def num_labels(self) -> npt.NDArray[np.int64]:
        """(token, next token) pairs of each document: its tokens less one, [n]."""
        return self.lengths - 1

    @property
    def supervised(self) -> npt.NDArray[np.bool_]:
        """Whether each has an answer token to train on, [n]."""
        return self.answer_labels > 0

    def at(self, positions: npt.NDArray[np.int64]) -> Subset:
        """Return the documents at these positions, in their order."""
        return Subset(
            indices=self.indices[positions],
            lengths=self.lengths[positions],
            answer_labels=self.answer_labels[positions],
            left_out=self.left_out,
        )


def apply_truncation(
    data: TokenizedDataset, seq: int, policy: Truncate, *, loss_mask: float = 0.0, flag: str = "--data"
) -> Subset:
    """Choose the documents of a run.

    `error` raises DataError if a document exceeds `seq` or has nothing to train on. `drop` leaves those out. `keep` cuts on the
    right, as the original does. Nothing to train on has a document of fewer than 2 tokens and, when only answers weigh
    (`loss_mask` 0), one without an answer token that another predicts; `keep` leaves out the former alone. `flag` names the set
    in the message. Whatever the policy and the weight, a subset without a single answer token to train on is refused.
    """
    lengths = np.minimum(data.lengths, seq + 1)
    answer_labels = data.answers.labels(lengths)
    exceeds, empty = data.lengths > lengths, lengths < 2
    useless = empty | (answer_labels == 0) if loss_mask == 0 else empty
    if policy == "error" and (exceeds.any() or useless.any()):
        raise _not_all_fit(length_report(data, seq), int(useless.sum()), flag)
    kept = np.flatnonzero(~empty if policy == "keep" else ~(exceeds | useless))
    if not len(kept):
        raise DataError(f"{flag}: no document is left to use at --seq {seq}", hint="raise --seq")
    subset = Subset(
        indices=kept, lengths=lengths[kept], answer_labels=answer_labels[kept], left_out=int(len(lengths) - len(kept))
    )
    refuse_unsupervised(subset, seq, flag)
    return subset


def refuse_unsupervised(subset: Subset, seq: int, flag: str) -> None:
    """Raise DataError unless some document has an answer token to train on: without, the loss would be that of nothing."""
    if not subset.supervised.any():
        raise DataError(
            f"{flag}: not one of the {len(subset):,} documents has an answer token to train on at --seq {seq}",
            hint="raise --seq so that answers are not cut away; `medsft inspect` shows how documents fit",
        )


def cut_sentence(data: TokenizedDataset, subset: Subset, seq: int, flag: str) -> list[str]:
    """Say how many answers `--truncate keep` cuts, and how many it takes away whole; nothing where no document is cut."""
    used = np.zeros(data.num_documents, np.int64)
    used[subset.indices] = subset.lengths
    documents = int((data.lengths[subset.indices] > subset.lengths).sum())
    if not documents:
        return []
    answers = data.answers
    limits = used[answers.document]
    cut = (limits > 0) & (answers.behind > limits)
    whole = int((cut & (np.maximum(answers.first, 1) >= limits)).sum())
    lost = f"{count(int(cut.sum()) - whole)} answers lose a part, {count(whole)} all"
    return [f"{flag}: {count(documents)} documents are cut at --seq {seq}: {lost}."]


def _not_all_fit(report: LengthReport, useless: int, flag: str) -> DataError:
    counts = [
        (report.exceeding, f"longer than --seq {report.seq} (the longest needs --seq {report.fitting_seq})"),
        (report.answers_cut, "answers would lose a part"),
        (report.answers_without_end, "answers would lose their end"),
        (useless, "would have nothing to train on"),
    ]
    lines = "\n".join(f"  {amount:>8,} {what}" for amount, what in counts if amount)
    return DataError(
        f"{flag}: not all of the {report.documents:,} documents can be used as they are:\n{lines}",
        hint="raise --seq, leave such documents out with --truncate drop, or cut them with --truncate keep",
    )
