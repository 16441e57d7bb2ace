"""Where the answers lie in the documents of a set, as the roles of the tokens say: any number of answers in a document.

An answer is a run of tokens with the role ANSWER in one document; a document that is plain text counts as one answer. The
places are kept beside the set, so that a plan need not read the roles: ``NAME-answers.npy``, int32 [answers, 4], whose columns
are the arrays of `Answers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from medsft.core.data.tokenizers.template import Role

_Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Answers:
    """All answers of some documents, in the order of their tokens. Each array is int32 [answers]."""

    document: _Ints
    """Number of the document that the answer is in"""
    first: _Ints
    """Place of its first token in the document"""
    end: _Ints
    """Place behind its last stop token; `behind` where it has none"""
    behind: _Ints
    """Place behind its last token"""

    def __len__(self) -> int:
        return len(self.document)

    @property
    def num_tokens(self) -> int:
        """Tokens of all answers."""
        return int((self.behind - self.first).sum(dtype=np.int64))

    def labels(self, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Count for each document the answer tokens that its first `lengths` tokens predict, [documents].

        The first token of a document is never predicted.
        """
        counted = np.bincount(self.document, weights=self.labels_within(lengths), minlength=len(lengths))
        return counted.astype(np.int64)

    def labels_within(self, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Count for each answer its tokens that the first `lengths` tokens, [documents], of its document predict, [answers]."""
        kept = np.minimum(self.behind, lengths[self.document]) - np.maximum(self.first, 1)
        return np.maximum(kept, 0).astype(np.int64)

    @property
    def turns(self) -> npt.NDArray[np.int64]:
        """Number of each answer among those of its document, from 1, [answers]."""
        return np.arange(1, len(self.document) + 1) - np.searchsorted(self.document, self.document, side="left")

    def where(self, chosen: npt.NDArray[np.bool_]) -> Answers:
        """Return some of these, [answers]."""
        return _of(self.columns()[chosen])

    def fit(self, lengths: npt.NDArray[np.int64]) -> bool:
        """Tell whether these can be places in documents of these lengths, [documents]."""
        known = bool(((self.document >= 0) & (self.document < len(lengths))).all() and (np.diff(self.document) >= 0).all())
        ordered = (self.first >= 0) & (self.first < self.end) & (self.end <= self.behind)
        return known and bool((ordered & (self.behind <= lengths[self.document])).all())

    def same_as(self, other: Answers) -> bool:
        """Tell whether both name the same places."""
        return np.array_equal(self.columns(), other.columns())

    def columns(self) -> _Ints:
        """Return what is kept on disk, int32 [answers, 4]."""
        return np.stack([getattr(self, field.name) for field in fields(self)], axis=1)


def supervised(roles: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.bool_]:
    """Tell which tokens have a role that is trained on, see `Role.supervised`: that of answers, and that of text."""
    return roles >= Role.ANSWER


def count_by_role(roles: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
    """Count the tokens of each role, [number of roles]."""
    return np.bincount(roles, minlength=len(Role))


def counts_of(by_role: npt.NDArray[np.int64]) -> tuple[int, ...]:
    """Return these counts as a manifest holds them: that of text only where there is any."""
    counts = tuple(by_role.tolist())
    return counts if counts[Role.TEXT] else counts[: Role.TEXT]


def find_answers(
    roles: npt.NDArray[np.integer[Any]],
    sizes: npt.NDArray[np.integer[Any]],
    *,
    stops: npt.NDArray[np.bool_] | None,
    answer_tail: int = 0,
    first_document: int = 0,
) -> Answers:
    """Find the answers in documents laid end to end: `roles` and `stops` [sum of `sizes`], `sizes` [documents].

    `stops` says which tokens are stop tokens. Without, the last `answer_tail` tokens of an answer are taken to follow its stop
    token. Documents are numbered from `first_document`.
    """
    ends = np.cumsum(sizes, dtype=np.int64)
    starts = ends - sizes
    is_answer = np.concatenate([[False], supervised(roles), [False]])
    begins = is_answer[1:-1] & ~is_answer[:-2]
    closes = is_answer[1:-1] & ~is_answer[2:]
    filled = np.asarray(sizes) > 0
    begins[starts[filled]] = is_answer[1:-1][starts[filled]]  # an answer never goes on into the next document
    closes[ends[filled] - 1] = is_answer[1:-1][ends[filled] - 1]
    first, behind = np.flatnonzero(begins), np.flatnonzero(closes) + 1
    document = np.searchsorted(ends, first, side="right")
    if stops is None:
        end = np.maximum(first + 1, behind - answer_tail)
    else:
        places = np.flatnonzero(stops) + 1
        last = np.searchsorted(places, behind, side="right") - 1
        end = places[last] if len(places) else behind
        end = np.where((last >= 0) & (end > first), end, behind)
    offset = starts[document]
    return Answers(
        (document + first_document).astype(np.int32),
        (first - offset).astype(np.int32),
        (end - offset).astype(np.int32),
        (behind - offset).astype(np.int32),
    )


def joined(parts: Sequence[Answers]) -> Answers:
    """Return the answers of several runs of documents as one."""
    return _of(np.concatenate([np.zeros((0, 4), np.int32), *(part.columns() for part in parts)]))


def answers_of_array(array: npt.NDArray[Any], num_documents: int, *, answer_tail: int) -> Answers | None:
    """Return the answers that a file holds, None when it is not one of these formats.

    Version 0.1.0 wrote [documents, 2]: the first place of all answers of a document and the one behind the last, (0, 0) for
    none. That is right only where no document has two answers, which the caller can tell by the number of tokens.
    """
    if array.ndim != 2:
        return None
    if array.shape[1] == 4:
        return _of(array.astype(np.int32))
    if array.shape != (num_documents, 2):
        return None
    document = np.flatnonzero(array[:, 1] > array[:, 0]).astype(np.int32)
    first, behind = array[document].T.astype(np.int32)
    return Answers(document, first, np.maximum(first + 1, behind - answer_tail), behind)


def _of(columns: _Ints) -> Answers:
    return Answers(*(np.ascontiguousarray(column) for column in columns.T))
