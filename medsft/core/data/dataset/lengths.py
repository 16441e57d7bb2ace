"""How long the documents of a set are, and what a sequence length would do to them.

Lengths are tokens; `outlines` says what fits, how conversations are cut, and how texts are divided.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medsft.core.data.dataset.dataset import TokenizedDataset
from medsft.core.data.dataset.subset import Reading, as_read, count_cut
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
    turns: dict[int, int]
    """Number of turns -> conversations that have as many; each answer ends one"""
    exceeding: int
    """Conversations longer than seq + 1 tokens"""
    answers_cut: int
    """Answers that would lose tokens; a document may have several"""
    answers_without_end: int
    """Answers that would lose the token that ends them"""
    answers_lost: int
    """Answers that would lose all their tokens where whole turns are cut (`--truncate keep`)"""
    cut_from_turn: dict[int, int]
    """Number of a turn -> conversations of several turns that would be cut from that one on"""
    unsupervised: int
    """Documents with no answer token left to train on"""
    trained: int
    """Labels of answers that would be trained on (`--turns`), of all documents with what is left of them"""
    texts: int
    """Documents that are plain text; they are not cut, but read in pieces of `seq` labels"""
    text_pieces: int
    """Pieces of all texts"""
    fitting_seq: int
    """The smallest `seq` at which no conversation is cut; of texts alone that at which none is divided"""


def length_report(data: TokenizedDataset, seq: int, *, turns: str = "all", whole_turns: bool = True) -> LengthReport:
    """Report on a whole set. Reads lengths and the places of answers only, never tokens. Raises DataError for an empty one.

    `turns` and `whole_turns` say how a run reads it, see `subset.Reading`.
    """
    lengths, outlines = data.lengths, data.outlines
    if not len(lengths):
        raise DataError(f"{data.folder} holds no documents", hint="give --data and --retokenize")
    percentiles = np.percentile(lengths, PERCENTILES, method="higher").tolist()
    reading = Reading(seq=seq, truncate="keep", turns=turns, whole_turns=whole_turns)
    read, cut, texts = as_read(outlines, reading), count_cut(outlines, reading), outlines.texts
    numbers, conversations = np.unique(outlines.num_turns[~texts], return_counts=True)
    return LengthReport(
        seq=seq,
        documents=data.num_documents,
        tokens=data.num_tokens,
        tokens_by_role=data.tokens_by_role,
        shortest=int(lengths.min()),
        longest=int(lengths.max()),
        mean=float(lengths.mean()),
        percentiles=dict(zip(PERCENTILES, map(int, percentiles), strict=True)),
        turns=dict(zip(numbers.tolist(), conversations.tolist(), strict=True)),
        exceeding=int(outlines.exceeding(seq).sum()),
        answers_cut=cut.lost + cut.parts,
        answers_without_end=cut.lost + cut.endless,
        answers_lost=cut.lost,
        cut_from_turn=dict(cut.turns),
        unsupervised=data.num_documents - len(np.unique(read.indices[read.supervised])),
        trained=int(read.answer_labels.sum()),
        texts=int(texts.sum()),
        text_pieces=int(texts[read.indices].sum()),
        fitting_seq=max(1, int((lengths if texts.all() else lengths[~texts]).max()) - 1),
    )
