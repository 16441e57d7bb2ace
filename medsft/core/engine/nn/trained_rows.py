"""Tables of tokens of which single rows are trained: those of tokens that the base model did not have.

The table itself is frozen. It holds the current values of all its rows, those of the trained ones, too
(`MasterWeights.copy_to_compute` writes them after each update), so nothing that reads it needs to know which are trained. The
gradient of the trained rows goes to a parameter of their own, `trained_rows` [rows, hidden]: none is as large as a table.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from medsft.core.engine.nn.dtensor import local_part, local_part_of_sum, local_range


@dataclass(frozen=True, slots=True)
class HeldRows:
    """The trained rows of a table, and which of them lie in the part of the table that this rank has."""

    trained: Tensor
    """All of them [rows, hidden]; gradients pass."""
    numbers: Tensor
    """int64, ascending: numbers of those that are held, counted from the first row of this rank's part."""
    first: int
    """Where in `trained` the first one is that is held; the others follow."""

    def scatter(self, held: Tensor) -> Tensor:
        """Return a tensor like `trained` with the values of the rows that are held, and zeros."""
        whole = torch.zeros_like(self.trained)
        whole[self.first : self.first + len(held)] = held
        return whole


def held_rows(table: Tensor, trained: Tensor, rows: tuple[int, ...]) -> HeldRows:
    """Return which of `rows` (ascending), whose values are `trained`, lie in this rank's part of `table` [vocab, hidden]."""
    (begin, *_), (count, *_) = local_range(table)
    first, last = bisect_left(rows, begin), bisect_left(rows, begin + count)
    return HeldRows(local_part_of_sum(trained), _numbers(rows[first:last], begin, table.device), first)


@lru_cache(maxsize=16)
def _numbers(rows: tuple[int, ...], begin: int, device: torch.device) -> Tensor:
    return torch.tensor([row - begin for row in rows], dtype=torch.int64, device=device)


class TokenEmbedding(nn.Embedding):
    """An embedding; with `rows`, it is frozen but for these."""

    def __init__(self, vocab_size: int, hidden_size: int, rows: tuple[int, ...] = (), *, _weight: Tensor | None = None) -> None:
        super().__init__(vocab_size, hidden_size, _weight=_weight)
        self.rows = rows
        self.trained_rows = nn.Parameter(torch.empty(len(rows), hidden_size)) if rows else None

    def held_rows(self) -> HeldRows | None:
        """Return the trained rows, None where all of the table is trained or frozen."""
        return None if self.trained_rows is None else held_rows(self.weight, self.trained_rows, self.rows)

    def forward(self, ids: Tensor) -> Tensor:
        """Return [T, hidden] of `ids` [T]."""
        return self.look_up(ids)

    def look_up(self, ids: Tensor) -> Tensor:
        """Return rows of this rank's part of the table, `ids` counted from its first one."""
        held, table = self.held_rows(), local_part(self.weight)
        return F.embedding(ids, table) if held is None else _LookUp.apply(ids, table, held.trained, held)


class OutputProjection(nn.Linear):
    """An output projection that is frozen but for `rows`."""

    def __init__(self, hidden_size: int, vocab_size: int, rows: tuple[int, ...]) -> None:
        super().__init__(hidden_size, vocab_size, bias=False)
        self.rows = rows
        self.trained_rows = nn.Parameter(torch.empty(len(rows), hidden_size))

    def held_rows(self) -> HeldRows:
        """Return the trained rows."""
        return held_rows(self.weight, self.trained_rows, self.rows)


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, table: Tensor, trained: Tensor, held: HeldRows) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.held = held
        return F.embedding(ids, table)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (ids,) = ctx.saved_tensors
        # A product and no scattered addition, whose order of summing differs from call to call on a GPU.
        chosen = (ids == ctx.held.numbers[:, None]).to(torch.float32)
        return None, None, ctx.held.scatter(chosen @ grad.float()), None
