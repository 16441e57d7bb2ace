"""How long the documents of a set are, and what a sequence length would do to them.

Lengths are tokens. A document of n tokens gives n - 1 pairs (token, next token), so it fits `seq` when n - 1 <= seq; one that
is longer is cut on the right to seq + 1 tokens. A token is trained on as the next one of another: the first never is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medsft.core.data.dataset.dataset import TokenizedDataset
from medsft.core.data.tokenizers.template import Role
from medsft.errors import DataError

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
    """Answers that would lose tokens; a document may have several"""
    answers_without_end: int
    """Answers that would lose the token that ends them: a model learns from those never to stop"""
    unsupervised: int
    """Documents with no answer token left to train on"""
    fitting_seq: int
    """The smallest `seq` at which no document is cut"""


def length_report(data: TokenizedDataset, seq: int) -> LengthReport:
    """Report on a whole set. Reads lengths and the places of answers only, never tokens. Raises DataError for an empty one."""
    lengths, answers, limit = data.lengths, data.answers, seq + 1
    if not len(lengths):
        raise DataError(f"{data.folder} holds no documents", hint="give --data and --retokenize")
    percentiles = np.percentile(lengths, PERCENTILES, method="higher").tolist()
    return LengthReport(
        seq=seq,
        documents=data.num_documents,
        tokens=data.num_tokens,
        tokens_by_role=data.tokens_by_role,
        shortest=int(lengths.min()),
        longest=int(lengths.max()),
        mean=float(lengths.mean()),
        percentiles=dict(zip(PERCENTILES, map(int, percentiles), strict=True)),
        exceeding=int((lengths > limit).sum()),
        answers_cut=int((answers.behind > limit).sum()),
        answers_without_end=int((answers.end > limit).sum()),
        unsupervised=int((answers.labels(np.minimum(lengths, limit)) == 0).sum()),
        fitting_seq=max(1, int(lengths.max()) - 1),
    )
