"""Finds rows of the vocabulary's tables that a base model never trained.

Such a row is no direction that the model knows. A first update from one is wild: the norm in front of the first layer
stretches a row of zeros to full length. They are the reserved tokens of a family (Llama 3 has 256, and its base models trained
few of them), and the padding that makes a table's size round.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import Tensor

from medsft.core.engine.formats.source import WeightSource
from medsft.core.models.tensors import EMBEDDING, OUTPUT

_SHORT = 1e-3
"""A row this much shorter than is usual was never trained: weight decay took nearly all of it."""
_SAMPLED_BLOCKS, _BLOCK = 16, 16


def untrained_rows(source: WeightSource, rows: Collection[int]) -> dict[str, frozenset[int]]:
    """Return, by table, those of `rows` that are zeros, nearly so, or the very numbers of a neighbor or of one another.

    The last are copies that nobody has trained apart. Rows that the source does not have are left out.
    """
    count = source.config.vocab_size
    wanted = sorted(row for row in set(rows) if row < count)
    tables = (EMBEDDING,) if source.config.tie_embeddings else (EMBEDDING, OUTPUT)
    return {table: _in_table(source, table, wanted, count) for table in tables} if wanted else {}


def _in_table(source: WeightSource, table: str, wanted: Iterable[int], count: int) -> frozenset[int]:
    usual = _usual_length(source, table, count)
    found: set[int] = set()
    seen: dict[bytes, int] = {}
    for row in wanted:
        first = max(0, row - 1)
        near = source.read(table, (slice(first, min(row + 2, count)),)).float()
        mine = near[row - first]
        content = mine.numpy().tobytes()
        twin = seen.setdefault(content, row)
        others = [other for place, other in enumerate(near, first) if place != row]
        if float(mine.norm()) <= _SHORT * usual or twin != row or any(torch.equal(mine, other) for other in others):
            found |= {row, twin}
    return frozenset(found)


def _usual_length(source: WeightSource, table: str, count: int) -> float:
    """Return the median length of rows in some blocks spread over the table."""
    last = max(0, count - _BLOCK)
    starts = sorted({last * block // _SAMPLED_BLOCKS for block in range(_SAMPLED_BLOCKS)})
    blocks: list[Tensor] = [source.read(table, (slice(start, min(start + _BLOCK, count)),)).float() for start in starts]
    return float(torch.cat(blocks).norm(dim=1).median())
