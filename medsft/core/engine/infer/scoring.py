"""How likely continuations are: texts end to end in one stream, what several begin with computed once, few rows projected.

    requests --sorted--> families, whose texts begin alike --packed, longest first--> streams of about `most_tokens`

    stream:  beginning | rest of text 1 | continuation | continuation | rest of text 2 | continuation | ...

Each part of a stream sees the parts that its text is made of, and itself. A family that is larger than a stream has its
beginning computed ahead, alone: its keys and values stay while the rest of the family goes by.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from medsft.core.engine.nn.attention import PackedSequences
from medsft.core.engine.nn.key_ranges import KeyRanges, Range, attend_ranges
from medsft.core.engine.nn.model import Decoder
from medsft.core.evaluation.requests import Score, Scored
from medsft.core.planning.memory import LOGITS_BYTES

_LEAST_SHARED = 16
"""Tokens that a beginning must have to be worth a part of its own."""
KeysAndValues = list[tuple[Tensor, Tensor]]
"""Of each layer, [tokens, key heads, size of a head]."""


@dataclass(frozen=True, slots=True)
class Family:
    """Requests whose prefixes begin with the same tokens."""

    shared: int
    """How many; 0 for a request on its own. Each prefix has at least one token more."""
    requests: tuple[Score, ...]

    @property
    def beginning(self) -> tuple[int, ...]:
        """The tokens that they share."""
        return self.requests[0].prefix[: self.shared]

    @property
    def tokens(self) -> int:
        """Tokens that are computed for it."""
        return self.shared + sum(_own_tokens(request, self.shared) for request in self.requests)


@dataclass(frozen=True, slots=True)
class Batch:
    """What is computed at once."""

    families: tuple[Family, ...]
    ahead: tuple[int, ...] = ()
    """The beginning of the one family, where it is computed ahead."""


@torch.inference_mode()
def score(decoder: Decoder, requests: Sequence[Score], *, most_tokens: int) -> Iterator[Scored]:
    """Yield the answer to each request, in any order. `most_tokens` is how many are computed at once, a longer text apart.

    Sums of log p are taken in fp64. Raises ValueError for a request without a token to go on from, or to score.
    """
    ahead: tuple[int, ...] = ()
    root: KeysAndValues = []
    for batch in batches(families(requests), most_tokens):
        if batch.ahead != ahead:
            ahead = batch.ahead
            root = _keys_and_values(decoder, ahead) if ahead else []
        yield from _score(decoder, batch, root)


def families(requests: Sequence[Score]) -> list[Family]:
    """Group requests by how their prefixes begin, so that few tokens are computed."""
    for request in requests:
        if not request.prefix or not all(request.continuations):
            raise ValueError(f"request {request.id}: a prefix and its continuations have at least one token each")
    found: list[Family] = []
    members: list[Score] = []
    shared = 0
    for request in sorted(requests, key=lambda request: request.prefix):
        joint = common(members[-1].prefix, request.prefix, shared if len(members) > 1 else None) if members else 0
        joint = min(joint, *(len(each.prefix) - 1 for each in (members[0], request))) if members else 0
        # With it, each member but one saves `joint` tokens; without it, each of the others but one saves `shared`.
        if members and joint >= _LEAST_SHARED and len(members) * joint >= (len(members) - 1) * shared:
            members.append(request)
            shared = joint
            continue
        if members:
            found.append(Family(shared if len(members) > 1 else 0, tuple(members)))
        members, shared = [request], 0
    return [*found, Family(shared if len(members) > 1 else 0, tuple(members))] if members else []


def common(a: Sequence[int], b: Sequence[int], most: int | None = None) -> int:
    """Return how many tokens two texts begin with alike, at most `most`."""
    high = min(len(a), len(b)) if most is None else min(len(a), len(b), most)
    low = 0
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def batches(found: Sequence[Family], most_tokens: int) -> list[Batch]:
    """Pack families into batches of at most `most_tokens`, longest first. A family that does not fit into one is divided."""
    packed: list[Batch] = []
    whole: list[Family] = []
    for family in sorted(found, key=lambda family: -family.tokens):
        if family.tokens <= most_tokens or len(family.requests) == 1:
            whole.append(family)
            continue
        ordered = sorted(family.requests, key=lambda request: -_own_tokens(request, family.shared))
        sizes = [_own_tokens(request, family.shared) for request in ordered]
        for part in _filled(sizes, most_tokens):
            one = Family(family.shared, tuple(ordered[i] for i in part))
            packed.append(Batch((one,), ahead=family.beginning))
    packed += [Batch(tuple(whole[i] for i in part)) for part in _filled([family.tokens for family in whole], most_tokens)]
    return packed


def _filled(sizes: Sequence[int], most: int) -> list[list[int]]:
    """Return the numbers of things of these sizes, in their order, in parts of at most `most`, a larger thing apart."""
    parts: list[list[int]] = []
    room = 0
    for number, size in enumerate(sizes):
        if not parts or size > room:
            parts.append([])
            room = most
        parts[-1].append(number)
        room -= size
    return parts


def _own_tokens(request: Score, shared: int) -> int:
    return len(request.prefix) - shared + sum(len(continuation) - 1 for continuation in request.continuations)


@dataclass(slots=True)
class _Stream:
    """A stream while it is laid out: its tokens, its parts, and the pairs (row of the stream, token that is scored there)."""

    offset: int
    """Rows of keys that come before those of the stream."""
    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    ranges: list[tuple[Range, ...]] = field(default_factory=list)
    pairs: list[tuple[int, int]] = field(default_factory=list)

    def add(self, tokens: Sequence[int], before: tuple[Range, ...]) -> tuple[Range, ...]:
        """Lay out a part that goes on from the keys in `before`, and return the keys that one after it goes on from."""
        start = self.offset + len(self.tokens)
        position = sum(end - first for first, end in before)
        self.tokens += tokens
        self.positions += range(position, position + len(tokens))
        self.lengths.append(len(tokens))
        own = start, start + len(tokens)
        after = (*before[:-1], (before[-1][0], own[1])) if before and before[-1][1] == start else (*before, own)
        self.ranges.append(after)
        return after


def _score(decoder: Decoder, batch: Batch, root: KeysAndValues) -> Iterator[Scored]:
    stream = _Stream(offset=len(batch.ahead))
    for family in batch.families:
        before: tuple[Range, ...] = ((0, len(batch.ahead)),) if batch.ahead else ()
        if family.shared and not batch.ahead:
            before = stream.add(family.beginning, ())
        for request in family.requests:
            text = stream.add(request.prefix[family.shared :], before)
            last = len(stream.tokens) - 1
            for continuation in request.continuations:
                first = len(stream.tokens)
                if len(continuation) > 1:
                    stream.add(continuation[:-1], text)
                rows = (last, *range(first, first + len(continuation) - 1))
                stream.pairs += zip(rows, continuation, strict=True)
    device = decoder.head_weight().device
    tokens = torch.tensor(stream.tokens, device=device)
    where = KeyRanges.of(stream.lengths, stream.ranges, device)
    hidden = decoder(tokens, _PartsOfTexts(torch.tensor(stream.positions, device=device), where, root))
    log_p, best = _log_p(decoder, hidden, stream.pairs)
    at = 0
    for family in batch.families:
        for request in family.requests:
            counts = [len(continuation) for continuation in request.continuations]
            ends = at + np.cumsum(counts)
            spans = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
            yield Scored(
                id=request.id,
                log_likelihoods=tuple(float(log_p[span].sum()) for span in spans),
                num_tokens=tuple(counts),
                greedy=tuple(bool(best[span].all()) for span in spans),
            )
            at += sum(counts)


def _log_p(decoder: Decoder, hidden: Tensor, pairs: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return for each pair (row, token) log p of the token, fp64, and whether it is the likeliest. A row is projected once."""
    places, labels = np.array(pairs).T
    rows, inverse = np.unique(places, return_inverse=True)
    wanted = hidden.index_select(0, torch.from_numpy(rows).to(hidden.device))
    log_p, best = np.empty(len(pairs)), np.empty(len(pairs), bool)
    chunk = max(1, LOGITS_BYTES[hidden.device.type] // (4 * len(decoder.head_weight())))
    for start in range(0, len(rows), chunk):
        logits = decoder.logits(wanted[start : start + chunk]).float()
        here = np.flatnonzero((inverse >= start) & (inverse < start + chunk))
        row, label = (torch.from_numpy(x[here]).to(hidden.device) for x in (inverse - start, labels))
        picked = logits[row, label].double() - logits.logsumexp(-1).double()[row]
        log_p[here] = picked.cpu().numpy()
        best[here] = (logits.argmax(-1)[row] == label).cpu().numpy()
    return log_p, best


class _PartsOfTexts:
    """Parts of texts in one stream; their texts may begin with keys and values that were computed ahead."""

    def __init__(self, position_ids: Tensor, where: KeyRanges, root: KeysAndValues) -> None:
        self.position_ids = position_ids
        self._where, self._root = where, root
        self._layer = 0

    def attend(self, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        """See `Sequences.attend`."""
        if self._root:
            keys, values = self._root[self._layer]
            k, v = torch.cat([keys, k]), torch.cat([values, v])
            self._layer += 1
        return attend_ranges(q, k, v, self._where, window)


class _Recorded:
    """One text, of which keys and values are kept."""

    def __init__(self, sequences: PackedSequences) -> None:
        self.position_ids = sequences.position_ids
        self.found: KeysAndValues = []
        self._sequences = sequences

    def attend(self, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        """See `Sequences.attend`."""
        self.found.append((k, v))
        return self._sequences.attend(q, k, v, window)


def _keys_and_values(decoder: Decoder, tokens: Sequence[int]) -> KeysAndValues:
    device = decoder.head_weight().device
    recorded = _Recorded(PackedSequences.of([len(tokens)], device))
    decoder(torch.tensor(tokens, device=device), recorded)
    return recorded.found
