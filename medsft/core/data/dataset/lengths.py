"""How the documents of a set fit a sequence length, which of them a run uses, and samples to look at.

A document of n tokens gives n - 1 pairs (token, next token), so it fits `seq` when n - 1 <= seq. One that is longer is
cut on the right to seq + 1 tokens. Only a token that is some token's next one can be learnt: the first never is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from medsft.core.data.dataset.dataset import TokenizedDataset
from medsft.core.data.tokenizers.template import Role
from medsft.errors import DataError

Truncate = Literal["error", "drop", "keep"]
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthReport:
    """Lengths of the documents of a set, and what `seq` would do to them."""

    seq: int
    documents: int
    tokens: int
    tokens_by_role: dict[Role, int]
    shortest: int
    longest: int
    mean: float
    percentiles: dict[int, int]
    """Percent -> tokens: so many percent of the documents are that long or shorter"""
    exceeding: int
    """Documents longer than seq + 1 tokens"""
    answers_cut: int
    """Answers that would lose tokens"""
    answers_without_end: int
    """Answers that would lose the token that ends them: a model learns from those never to stop"""
    unsupervised: int
    """Documents with no answer token left to learn"""
    fitting_seq: int
    """The smallest `seq` at which no document is cut"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentSelection:
    """The documents that a run trains on."""

    indices: npt.NDArray[np.int64]
    """Which documents, rising, [kept]"""
    lengths: npt.NDArray[np.int64]
    """Tokens of each that are used, at most seq + 1, [kept]"""
    dropped: int
    """Documents left out"""
    truncated: int
    """Kept documents that lose tokens"""
    unsupervised: int
    """Kept documents without an answer token to learn, which weigh nothing when only answers do"""
    answers_cut: int
    """Kept documents that lose a part of their answer, not all of it"""
    learnable: npt.NDArray[np.bool_]
    """Whether an answer token is left to learn, [kept]"""


@dataclass(frozen=True, slots=True)
class _Fit:
    """What `seq` does to each document, [documents] bool."""

    exceeds: npt.NDArray[np.bool_]
    cut: npt.NDArray[np.bool_]
    without_end: npt.NDArray[np.bool_]
    unsupervised: npt.NDArray[np.bool_]


def _fit(data: TokenizedDataset, seq: int) -> _Fit:
    limit = seq + 1
    first, behind = data.answer_spans[:, 0], data.answer_spans[:, 1]
    answered = behind > first
    return _Fit(
        exceeds=data.lengths > limit,
        cut=answered & (behind > limit),
        without_end=answered & (behind - data.manifest.answer_tail > limit),
        unsupervised=np.minimum(behind, limit) <= np.maximum(first, 1),
    )


def length_report(data: TokenizedDataset, seq: int) -> LengthReport:
    """Report on a whole set. Reads lengths and answer spans only, never tokens."""
    fit, lengths = _fit(data, seq), data.lengths
    if not len(lengths):
        raise DataError(f"{data.folder} holds no documents", hint="give --data and --retokenize")
    levels = np.percentile(lengths, PERCENTILES, method="higher").tolist()
    return LengthReport(
        seq=seq,
        documents=data.num_documents,
        tokens=data.num_tokens,
        tokens_by_role=data.tokens_by_role,
        shortest=int(lengths.min()),
        longest=int(lengths.max()),
        mean=float(lengths.mean()),
        percentiles=dict(zip(PERCENTILES, map(int, levels), strict=True)),
        exceeding=int(fit.exceeds.sum()),
        answers_cut=int(fit.cut.sum()),
        answers_without_end=int(fit.without_end.sum()),
        unsupervised=int(fit.unsupervised.sum()),
        fitting_seq=max(1, int(lengths.max()) - 1),
    )


def apply_truncation(
    data: TokenizedDataset, seq: int, policy: Truncate, *, loss_mask: float = 0.0, flag: str = "--data"
) -> DocumentSelection:
    """Choose the documents of a run.

    `error` raises DataError if a document exceeds `seq` or, when only answers weigh (`loss_mask` 0), has none to learn.
    `drop` leaves those out. `keep` cuts on the right, as the original does. A document of fewer than 2 tokens has
    nothing to learn under any weight and is left out by `drop` and `keep`. `flag` names the set in the message.
    Whatever the policy and the weight, a selection without a single answer token to learn is refused.
    """
    fit, lengths = _fit(data, seq), data.lengths
    useless = (lengths < 2) | fit.unsupervised if loss_mask == 0 else lengths < 2
    if policy == "error" and (fit.exceeds.any() or useless.any()):
        raise _too_long(data, seq, fit, int(useless.sum()), flag)
    if policy == "keep":
        keep = lengths >= 2
    else:
        keep = ~(fit.exceeds | useless)
    if not keep.any():
        raise DataError(f"{flag}: no document is left to use at --seq {seq}", hint="raise --seq")
    indices = np.flatnonzero(keep)
    learnable = ~fit.unsupervised[indices]
    refuse_unsupervised(learnable, seq, flag)
    return DocumentSelection(
        indices=indices,
        lengths=np.minimum(lengths[indices], seq + 1),
        dropped=int(len(lengths) - len(indices)),
        truncated=int((fit.exceeds & keep).sum()),
        unsupervised=int((fit.unsupervised & keep).sum()),
        answers_cut=int((fit.cut & keep & ~fit.unsupervised).sum()),
        learnable=learnable,
    )


def refuse_unsupervised(learnable: npt.NDArray[np.bool_], seq: int, flag: str) -> None:
    """Raise DataError unless some document has an answer token to learn: without, the loss would be that of nothing."""
    if not learnable.any():
        raise DataError(
            f"{flag}: not one of the {len(learnable):,} documents has an answer token to learn at --seq {seq}",
            hint="raise --seq so that answers are not cut away; `medsft inspect` shows how documents fit",
        )


def _too_long(data: TokenizedDataset, seq: int, fit: _Fit, useless: int, flag: str) -> DataError:
    longest = int(data.lengths.max())
    counts = [
        (int(fit.exceeds.sum()), f"longer than --seq {seq} (the longest needs --seq {longest - 1})"),
        (int(fit.cut.sum()), "would lose a part of the answer"),
        (int(fit.without_end.sum()), "would lose the end of the answer"),
        (useless, "would have nothing to learn"),
    ]
    lines = "\n".join(f"  {count:>8,} {what}" for count, what in counts if count)
    return DataError(
        f"{flag}: not all of the {data.num_documents:,} documents can be used as they are:\n{lines}",
        hint="raise --seq, leave such documents out with --truncate drop, or cut them with --truncate keep",
    )
