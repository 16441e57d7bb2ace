"""Attention to keys that were computed before: of a text that many go on from, and of the tokens that a model has written.

Shapes: T queries, S rows of keys and values, H query heads, K key/value heads (H a multiple of K), d head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medsft.core.engine.kernels import kernels_for
from medsft.core.engine.nn.cuda_attention import Spans, attend_on_gpu

Range = tuple[int, int]
"""Rows from the first up to, not including, the second."""
_MOST_SHARED_HEADS = 64


@dataclass(frozen=True, slots=True)
class KeyRanges:
    """Groups of queries that follow each other in a stream [T], and the rows of the keys that each group sees.

    The keys of a group end with its own: the last query sees all, the one before it one less, and so on.
    """

    lengths: tuple[int, ...]
    """Queries of each group."""
    ranges: tuple[tuple[Range, ...], ...]
    """Of each group, in the order of the text."""
    queries: Tensor
    """int32 [groups + 1], cumulative, on the device."""
    keys: Tensor
    """int32 [groups + 1]: cumulative numbers of keys, on the device."""
    pieces: Tensor
    """int32 [groups + 1]: cumulative numbers of ranges, on the host."""
    bounds: Tensor
    """int64 [ranges, 2], on the host."""
    rows: Tensor | None
    """int64 [keys of all groups]: the rows that the ranges hold, on a device that gathers them; None on a CPU."""

    @classmethod
    def of(cls, lengths: Sequence[int], ranges: Sequence[Sequence[Range]], device: torch.device | str = "cpu") -> KeyRanges:
        """Describe groups of `lengths` queries (each at least 1) with the `ranges` of keys that each sees."""
        device = torch.device(device)
        flat = [piece for own in ranges for piece in own]
        keys = [sum(end - start for start, end in own) for own in ranges]
        on_host = device.type == "cpu"
        rows = None if on_host else torch.from_numpy(np.concatenate([np.arange(*piece) for piece in flat])).to(device)
        return cls(
            lengths=tuple(lengths),
            ranges=tuple(map(tuple, ranges)),
            queries=_offsets(lengths).to(device),
            keys=_offsets(keys).to(device),
            pieces=_offsets([len(own) for own in ranges]),
            bounds=torch.tensor(flat, dtype=torch.int64),
            rows=rows,
        )


def attend_ranges(q: Tensor, k: Tensor, v: Tensor, where: KeyRanges, window: int | None = None) -> Tensor:
    """Return softmax(q k^T / sqrt(d)) v [T, H, d] for `q` [T, H, d] and `k`, `v` [S, K, d], see `KeyRanges`.

    With a `window`, a query sees only that many keys, its own included. There is no gradient.
    """
    kernels = kernels_for(q, k, v)
    if kernels and q.shape[1] <= _MOST_SHARED_HEADS * k.shape[1]:
        where_ = where.queries, where.pieces, where.bounds
        return kernels.attention_ranges(q.contiguous(), k.contiguous(), v.contiguous(), *where_, window)
    if q.is_cuda and (out := _attend_on_gpu(q, k, v, where, window)) is not None:
        return out
    offsets = pairwise(accumulate(where.lengths, initial=0))
    return torch.cat(
        [_attend_group(q[start:end], k, v, own, window) for (start, end), own in zip(offsets, where.ranges, strict=True)]
    )


def _attend_group(q: Tensor, k: Tensor, v: Tensor, ranges: Sequence[Range], window: int | None) -> Tensor:
    """Attend for one group [n, H, d] with torch's own kernel."""
    keys, values = (torch.cat([rows[start:end] for start, end in ranges]) for rows in (k, v))
    mask = torch.ones(len(q), len(keys), dtype=torch.bool, device=q.device).tril(len(keys) - len(q))
    if window is not None:
        mask = mask.triu(len(keys) - len(q) + 1 - window)
    heads, keys, values = (x.transpose(0, 1)[None] for x in (q, keys, values))
    return F.scaled_dot_product_attention(heads, keys, values, attn_mask=mask, enable_gqa=True)[0].transpose(0, 1)


def _attend_on_gpu(q: Tensor, k: Tensor, v: Tensor, where: KeyRanges, window: int | None) -> Tensor | None:
    """Return the same by torch's kernels for a GPU, of keys and values gathered for them; None where none takes them."""
    assert where.rows is not None
    longest = max(where.lengths), max(sum(end - start for start, end in own) for own in where.ranges)
    spans = Spans(where.queries, where.keys, longest)
    return attend_on_gpu(q, k.index_select(0, where.rows), v.index_select(0, where.rows), spans, window)


def _offsets(counts: Sequence[int]) -> Tensor:
    return torch.tensor((0, *accumulate(counts)), dtype=torch.int32)
