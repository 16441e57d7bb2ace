"""Segments that are tokenized as one text and then cut, in time that is linear in the text, be there ever so many segments.

A model that writes an answer is given the ids of the text before the answer, so these must be the beginning of what it was
trained on. Hence the whole is encoded as one text, and cut where a segment begins, which is checked by encoding the text up to
there. Where its ids are not the beginning of the whole's, a token lies across, and the text is encoded in two: up to there, and
from there on.

To encode the text up to each of n segments takes n times the text. But tokenizers take control tokens out of a text before
anything else, so what stands between two of them has the same ids whatever is around. A template writes one at the end of each
answer and mostly at the beginning, too; there the text is taken apart, and each part is cut on its own. A part begins with the
control token before a cut and ends with the one before a later cut: both parts have it, for its blanks may belong to it, and it
is taken away from the first. Where its id is not where it must be the text is not taken apart.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import numpy as np

from medsft.core.data.tokenizers.fast import TokenIds, as_ids
from medsft.core.data.tokenizers.special_tokens import pattern_of
from medsft.core.data.tokenizers.template import Segment

Encode = Callable[[Sequence[Segment]], list[TokenIds]]
_FEW_SEGMENTS = 3
"""A document of one turn has no more. To take it apart costs more than its question encoded twice."""
_WINDOW = 256
"""Characters before a cut in which a control token is looked for."""


def encode_jointly(documents: Sequence[Sequence[Segment]], encode: Encode, control_ids: Mapping[str, int]) -> list[TokenIds]:
    """Return the ids of each segment of each document, one after the other; `control_ids` are those of control tokens."""
    pattern = pattern_of(tuple(control_ids))
    parts = [_Parts.of(segments, pattern) for segments in documents]
    groups = [part for document in parts for part in document.parts]
    prefixes = iter(encode([prefix for group in groups for prefix in _prefixes(group)]))
    ids: list[TokenIds] = []
    for segments, document in zip(documents, parts, strict=True):
        cut = [_cut(part, [next(prefixes) for _ in part], encode) for part in document.parts]
        joined = document.joined(cut, len(segments), control_ids)
        ids += _cut(segments, encode(_prefixes(segments)), encode) if joined is None else joined
    return ids


@dataclass(frozen=True, slots=True)
class _Parts:
    """A document taken apart at control tokens, each of which is the end of one part and the beginning of the next."""

    parts: tuple[tuple[Segment, ...], ...]
    owners: tuple[tuple[int, ...], ...]
    """Number of the segment that each piece of each part is of"""
    anchors: tuple[str, ...]
    """The control tokens between the parts"""

    @classmethod
    def of(cls, segments: Sequence[Segment], pattern: re.Pattern[str]) -> _Parts:
        """Take a document of several turns apart at the last control token before each cut."""
        if len(segments) <= _FEW_SEGMENTS:
            return cls((tuple(segments),), (tuple(range(len(segments))),), ())
        starts = [0, *accumulate(len(segment.text) for segment in segments)]
        text = "".join(segment.text for segment in segments)
        literal = [(a + start, b + start) for one, start in zip(segments, starts, strict=False) for a, b in one.literal]
        places: list[tuple[int, int]] = []
        for cut in starts[1:-1]:
            place = _last_control(text, literal, pattern, places[-1][1] if places else 0, cut)
            if place is not None:
                places.append(place)
        edges = [(0, 0), *places, (len(text), len(text))]
        parts, owners = [], []
        for (begin, _), (_, end) in pairwise(edges):
            pieces = list(_pieces(segments, starts, begin, end))
            parts.append(tuple(piece for _, piece in pieces))
            owners.append(tuple(owner for owner, _ in pieces))
        return cls(tuple(parts), tuple(owners), tuple(text[begin:end] for begin, end in places))

    def joined(self, cut: Sequence[list[TokenIds]], num_segments: int, control_ids: Mapping[str, int]) -> list[TokenIds] | None:
        """Return the ids of each segment, from those of the pieces; None when an anchor is not one id at its place."""
        if not self.anchors and len(cut[0]) == num_segments:
            return cut[0]
        for number, anchor in enumerate(self.anchors):
            before, behind = np.concatenate(cut[number]), np.concatenate(cut[number + 1])
            wanted = control_ids[anchor]
            if not len(before) or not len(behind) or before[-1] != wanted or behind[0] != wanted or not len(cut[number][-1]):
                return None
            cut[number][-1] = cut[number][-1][:-1]
        of_segment: list[list[TokenIds]] = [[] for _ in range(num_segments)]
        for owners, pieces in zip(self.owners, cut, strict=True):
            for owner, ids in zip(owners, pieces, strict=True):
                of_segment[owner].append(ids)
        return [np.concatenate(pieces) if pieces else as_ids(()) for pieces in of_segment]


def _last_control(
    text: str, literal: Sequence[tuple[int, int]], pattern: re.Pattern[str], begin: int, cut: int
) -> tuple[int, int] | None:
    """Return where the last control token is that ends at `cut` or not far before; none in the ranges that people wrote."""
    found = None
    for match in pattern.finditer(text, max(begin, cut - _WINDOW), cut):
        before = bisect_right(literal, match.start(), key=lambda one: one[0])
        inside = before > 0 and match.start() < literal[before - 1][1]
        reaches = before < len(literal) and match.end() > literal[before][0]
        if not inside and not reaches:
            found = match.span()
    return found


def _pieces(segments: Sequence[Segment], starts: Sequence[int], begin: int, end: int) -> Iterator[tuple[int, Segment]]:
    """Yield what of each segment lies in a range of the whole text, with the number of the segment."""
    for number, (segment, start) in enumerate(zip(segments, starts, strict=False)):
        first, last = max(begin - start, 0), min(end - start, len(segment.text))
        if first < last or (begin <= start < end and not segment.text):
            literal = tuple((max(a, first) - first, min(b, last) - first) for a, b in segment.literal if a < last and b > first)
            yield number, replace(segment, text=segment.text[first:last], literal=literal)


def _cut(segments: Sequence[Segment], prefixes: Sequence[TokenIds], encode: Encode) -> list[TokenIds]:
    """Return the ids of each segment, from those of all texts that begin with the first and end with one of the others."""
    whole = prefixes[-1]
    ids: list[TokenIds] = []
    start = 0
    for number, prefix in enumerate(prefixes[:-1], 1):
        if not np.array_equal(whole[: len(prefix)], prefix):
            rest = segments[number:]
            return _cut(segments[:number], prefixes[:number], encode) + _cut(rest, encode(_prefixes(rest)), encode)
        ids.append(prefix[start:])
        start = len(prefix)
    return [*ids, whole[start:]]


def _prefixes(segments: Sequence[Segment]) -> list[Segment]:
    """The first segment, the first two in one, and so on."""
    return list(accumulate(segments, _joined))


def _joined(first: Segment, second: Segment) -> Segment:
    moved = tuple((start + len(first.text), end + len(first.text)) for start, end in second.literal)
    return Segment(first.text + second.text, second.role, first.literal + moved)
