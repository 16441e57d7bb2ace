"""Change the number of rows of the embedding and of the output projection while they are read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import torch
from torch import Tensor

from medsft.core.engine.formats.source import Slices, SourceAround, WeightSource
from medsft.core.models.tensors import EMBEDDING, OUTPUT

TABLES = (EMBEDDING, OUTPUT)
BLOCK_ROWS = 4096
"""Rows of a table that are held at a time."""
NewRows = Literal["mean", "copy_last"]


class ResizedSource(SourceAround):
    """Another source with its tables cut or lengthened to `rows`.

    Rows from the source's own number up to `tokens` belong to new tokens: each is the mean of the trained rows, or with
    `copy_last` a copy of the last one, as in the original. So is each row in `remade`, by table: rows that the source has, but
    never trained. Rows of the source from `trained` on are taken for padding. Rows behind those of new tokens are padding, too:
    copies of the last trained row.
    """

    def __init__(
        self,
        source: WeightSource,
        tokens: int,
        *,
        rows: int | None = None,
        new_rows: NewRows = "mean",
        remade: Mapping[str, Collection[int]] | None = None,
        trained: int | None = None,
    ) -> None:
        super().__init__(source)
        self._existing = source.config.vocab_size
        self._tokens = tokens
        self._new_rows = new_rows
        self._remade = {name: frozenset(ids) for name, ids in (remade or {}).items()}
        self._trained = self._existing if trained is None else min(trained, self._existing)
        self._means: dict[str, Tensor] = {}
        self.config = source.config.with_vocab(tokens if rows is None else rows)

    @property
    def created(self) -> range:
        """Ids of the new tokens whose rows are made up here."""
        return range(self._existing, max(self._existing, min(self._tokens, self.config.vocab_size)))

    @property
    def made_rows(self) -> tuple[int, ...]:
        """Rows of tokens that are made up here in any table, ascending: those of new tokens and those made anew."""
        return tuple(sorted({*self.created}.union(*self._remade.values())))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the full shape of a weight."""
        shape = self._source.shape(name)
        return (self.config.vocab_size, *shape[1:]) if name in TABLES else shape

    def read(self, name: str, slices: Slices | None = None) -> Tensor:
        """Return a weight, or the part of it in `slices`; rows of a table as the class says."""
        if name not in TABLES:
            return self._source.read(name, slices)
        rows, *columns = slices or (slice(None),)
        start, stop, step = rows.indices(self.config.vocab_size)
        assert step == 1, "tables are read in blocks of neighboring rows"
        kept = self._source.read(name, (slice(min(start, self._existing), min(stop, self._existing)), *columns))
        for row in sorted(self._remade.get(name, ())):
            if start <= row < min(stop, self._existing):
                kept[row - start] = self._new_row(name)[:, *columns][0]
        parts = [kept]
        new, padding = self.created, range(max(self.created.stop, self._existing), self.config.vocab_size)
        for ids, made in ((new, self._new_row), (padding, self._last_row)):
            count = len(range(max(start, ids.start), min(stop, ids.stop)))
            if count:
                parts.append(made(name)[:, *columns].expand(count, -1))
        return torch.cat(parts) if len(parts) > 1 else kept

    def _last_row(self, name: str) -> Tensor:
        remade = self._remade.get(name, frozenset())
        last = next((row for row in reversed(range(self._trained)) if row not in remade), self._trained - 1)
        return self._source.read(name, (slice(last, last + 1),))

    def _new_row(self, name: str) -> Tensor:
        if self._new_rows == "copy_last":
            return self._last_row(name)
        if name not in self._means:
            total = torch.zeros(1, self._source.shape(name)[1], dtype=torch.float64)
            for start in range(0, self._trained, BLOCK_ROWS):
                block = self._source.read(name, (slice(start, min(start + BLOCK_ROWS, self._trained)),))
                total += block.double().sum(0, keepdim=True)
            left_out = [row for row in self._remade.get(name, ()) if row < self._trained]
            for row in left_out:
                total -= self._source.read(name, (slice(row, row + 1),)).double()
            self._means[name] = (total / max(1, self._trained - len(left_out))).to(self._source.dtype(name))
        return self._means[name]
