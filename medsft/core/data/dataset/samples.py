"""Documents of a set as a run reads them, decoded for people to look at: part by part, each with its turn and weight."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from medsft.core.data.dataset.answers import find_answers, supervised
from medsft.core.data.dataset.dataset import TokenizedDataset
from medsft.core.data.dataset.encode import encode_rendered, encode_segments, render_document
from medsft.core.data.dataset.outlines import Outlines
from medsft.core.data.dataset.subset import Reading, Subset, as_read
from medsft.core.data.sources.conversation import Conversation
from medsft.core.data.tokenizers.base import OpenedTokenizer, Tokenizer
from medsft.core.data.tokenizers.template import Role, Segment
from medsft.core.units import count, counted


@dataclass(frozen=True, slots=True)
class SamplePart:
    """Consecutive tokens of one role that have the same weight in the loss."""

    role: Role
    text: str
    tokens: int
    turn: int = 1
    """Number of the turn that they belong to, from 1: an answer ends one"""
    trained: bool = False
    """Whether they are trained on as answers are, weight 1"""
    cut: bool = False
    """Whether `--truncate keep` takes them away"""
    ids: tuple[int, ...] = ()

    def weight(self, loss_mask: float) -> float:
        """Return the weight in the loss of these tokens, where `loss_mask` is that of tokens which are read only."""
        return 0.0 if self.cut else 1.0 if self.trained else loss_mask


@dataclass(frozen=True, slots=True)
class Sample:
    """One document, or a piece of a text, decoded."""

    document: int
    length: int
    """Tokens of the document"""
    parts: tuple[SamplePart, ...]
    start: int = 0
    """Place of the first token in the document; more than 0 in later pieces of a text"""

    @property
    def tokens(self) -> int:
        """Tokens of the parts."""
        return sum(part.tokens for part in self.parts)

    def title(self, seq: int) -> str:
        """Return which document it is, how long, and how that fits `seq`."""
        if self.tokens < self.length:
            last = self.start + self.tokens
            what = f"tokens {count(self.start + 1)} to {count(last)} of {counted(self.length, 'token')}"
            return f"document {count(self.document)}: {what}"
        over, cut = self.length - 1 - seq, sum(part.tokens for part in self.parts if part.cut)
        what = f", {count(over)} more than --seq {seq}" if over > 0 else ""
        then = f", {count(cut)} cut away" if cut else ""
        return f"document {count(self.document)}: {counted(self.length, 'token')}{what}{then}"

    def label(self, part: SamplePart) -> str:
        """Return whose words a part is, and in which turn where there are several."""
        several = self.parts[-1].turn > 1 and part.role in (Role.QUESTION, Role.ANSWER)
        turn = f"turn {part.turn}, " if several else ""
        return f"{turn}{part.role.name.lower()}, {counted(part.tokens, 'token')}"


def samples(data: TokenizedDataset, tokenizer: Tokenizer, subset: Subset, positions: Iterable[int]) -> list[Sample]:
    """Decode these positions of a subset, and behind a conversation what is cut away of it."""
    found = []
    for position in positions:
        document = int(subset.indices[position])
        tokens, roles = data.tokens(document), data.roles(document)
        found.append(_sample(document, tokens, roles, partial(_decode, tokens, tokenizer), subset, position))
    return found


def _decode(tokens: npt.NDArray[Any], tokenizer: Tokenizer, a: int, b: int) -> str:
    return tokenizer.decode(tokens[a:b].tolist())


def first_positions(subset: Subset, start: int, documents: int) -> list[int]:
    """Return the positions of some documents of a set, counted from number `start`, with all pieces of texts."""
    return np.flatnonzero((subset.indices >= start) & (subset.indices < start + documents)).tolist()


def conversation_samples(
    conversations: Sequence[Conversation], opened: OpenedTokenizer, reading: Reading, *, control: bool
) -> list[Sample]:
    """Return documents that are in no set yet, see `encode_documents`. Where parts are segments, their texts are these."""
    documents = [render_document(each, opened, only_last=reading.turns != "all") for each in conversations]
    encoded = encode_rendered(documents, opened, control=control)
    lengths = encoded.sizes.astype(np.int64)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    answers = find_answers(encoded.roles, encoded.sizes, stops=encoded.tokens == opened.stop_id)
    texts = encoded.roles[starts] == Role.TEXT if len(starts) else np.zeros(0, bool)
    subset = as_read(Outlines(lengths=lengths, answers=answers, texts=texts), reading)
    found = []
    for position, document in enumerate(subset.indices.tolist()):
        here = slice(int(starts[document]), int(ends[document]))
        tokens, segments = encoded.tokens[here], documents[document].segments
        ids = encode_segments([segments], opened, control=control)
        edges = {edge: number for number, edge in enumerate(accumulate(map(len, ids), initial=0))}
        decode = partial(_segments_between, segments, edges, tokens, opened.tokenizer)
        found.append(_sample(document, tokens, encoded.roles[here], decode, subset, position))
    return found


def _segments_between(
    segments: Sequence[Segment], edges: Mapping[int, int], tokens: npt.NDArray[Any], tokenizer: Tokenizer, a: int, b: int
) -> str:
    if a in edges and b in edges:
        return "".join(segment.text for segment in segments[edges[a] : edges[b]])
    return _decode(tokens, tokenizer, a, b)


def _sample(
    document: int,
    tokens: npt.NDArray[Any],
    roles: npt.NDArray[np.uint16],
    decode: Callable[[int, int], str],
    subset: Subset,
    position: int,
) -> Sample:
    span = subset.span(position)
    is_text = bool(len(roles)) and roles[0] == Role.TEXT
    behind = span.stop if is_text else len(tokens)  # the rest of a text is in other pieces
    trained = np.zeros(len(tokens), bool)
    trained[span] = supervised(roles[span])
    trained[: int(subset.trained_from[position])] = False
    answers = roles == Role.ANSWER
    ends = answers & ~np.append(answers[1:], False)
    turns = np.minimum(1 + np.cumsum(ends) - ends, max(1, int(ends.sum())))  # what follows the last answer is in its turn
    cut = np.arange(len(tokens)) >= span.stop
    changes = (np.diff(roles) != 0) | (np.diff(cut) != 0) | (np.diff(trained) != 0)
    edges = [span.start, *(np.flatnonzero(changes[span.start : behind - 1]) + span.start + 1).tolist(), behind]
    parts = [
        SamplePart(
            Role(int(roles[a])),
            decode(a, b),
            b - a,
            turn=int(turns[a]),
            trained=bool(trained[a]),
            cut=bool(cut[a]),
            ids=tuple(tokens[a:b].tolist()),
        )
        for a, b in pairwise(edges)
        if a < b
    ]
    return Sample(document, len(tokens), tuple(parts), span.start)


def token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Return each token as people read it, or as its file spells it where it is no whole character."""
    texts = [tokenizer.decode([id_]) for id_ in ids]
    whole = ("\N{REPLACEMENT CHARACTER}" not in text for text in texts)
    return [text if good else tokenizer.token(id_) or text for id_, text, good in zip(ids, texts, whole, strict=True)]
