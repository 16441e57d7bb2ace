"""Low-rank adapters as they are read from disk, and a base model with one merged into it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from medsft.core.config.lora import A_SUFFIX, B_SUFFIX, TRAINED_ROWS, LoraSpec
from medsft.core.engine.formats.hf import open_tensors
from medsft.core.engine.formats.quantized import QuantizedSource
from medsft.core.engine.formats.source import DTYPES, Slices, SourceAround, WeightSource
from medsft.core.models.adapter_folder import AdapterFolder
from medsft.core.models.nf4 import is_quantized
from medsft.core.models.tensors import EMBEDDING, OUTPUT
from medsft.errors import MismatchError


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAdapter:
    """An adapter whose tensors are read one by one."""

    lora: LoraSpec
    rows: Mapping[str, Sequence[int]]
    """By the name of a table, the ids of those of its rows that `TRAINED_ROWS` of it replaces."""
    tables: tuple[str, ...] = ()
    """The names of the tables that it holds whole."""
    read: Callable[[str], Tensor]
    """Return an A, a B, the trained rows of a table or a whole table by our name, on the CPU."""


def open_adapter(folder: AdapterFolder) -> StoredAdapter:
    """Open the tensors of an adapter folder. Raises `MismatchError` when its file cannot be read."""
    read = open_tensors(folder.weights)
    return StoredAdapter(lora=folder.lora, rows=folder.rows, tables=folder.tables, read=lambda name: read(folder.keys[name]))


class _HeldSource(SourceAround):
    """Another source, its weights rounded to the formats in which a run holds them."""

    def __init__(self, source: WeightSource, matrices: torch.dtype | None, others: torch.dtype | None) -> None:
        super().__init__(source)
        self._matrices, self._others = matrices, others

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype that `read` gives."""
        return (self._matrices if is_quantized(name) else self._others) or self._source.dtype(name)

    def read(self, name: str, slices: Slices | None = None) -> Tensor:
        """Return a weight, or the part of it in `slices`."""
        return self._source.read(name, slices).to(self.dtype(name))


def base_as_held(base: WeightSource, precision: str, others: torch.dtype | None = None) -> WeightSource:
    """Return a base model as a run holds it while it trains an adapter.

    `precision` is that of the matrices of its layers, empty where it is not known, and `others` the format of the other
    weights. What is not known is left as it is. Matrices in nf4 are given as the numbers that it means, in fp32.
    """
    held = _HeldSource(base, DTYPES.get(precision), others)
    return QuantizedSource(held) if precision == "nf4" else held


class MergedSource(SourceAround):
    """A base model with an adapter in it: W + scaling B A, computed in fp32 and given so; rows and tables as the adapter has
    them.

    The base must have as many rows as the adapter needs, see `AdapterFolder.vocab_size`. Biases, norms and all that the adapter
    does not change are the base's, in its format.
    """

    def __init__(self, base: WeightSource, adapter: StoredAdapter) -> None:
        super().__init__(base)
        self._adapter = adapter
        self._modules = {name.removesuffix(A_SUFFIX) for name, _ in adapter.lora.shapes(base.config) if name.endswith(A_SUFFIX)}
        self._rows: dict[str, Tensor] = {}

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype that `read` gives: fp32 for what the adapter changes."""
        changed = name.removesuffix(".weight") in self._modules or name in self._adapter.rows or name in self._adapter.tables
        return torch.float32 if changed else self._source.dtype(name)

    def read(self, name: str, slices: Slices | None = None) -> Tensor:
        """Return a weight, or the part of it in `slices`."""
        if name in self._adapter.tables:
            return self._adapter.read(name)[slices or ...].float()
        weight = self._source.read(name, slices)
        module = name.removesuffix(".weight")
        if module in self._modules:
            rows, columns = (*(slices or ()), slice(None), slice(None))[:2]
            first, second = (self._adapter.read(module + suffix).float() for suffix in (A_SUFFIX, B_SUFFIX))
            return torch.addmm(weight.float(), second[rows], first[:, columns], alpha=self._adapter.lora.scaling)
        return self._with_rows(name, weight.float(), slices) if name in self._adapter.rows else weight

    def _with_rows(self, name: str, table: Tensor, slices: Slices | None) -> Tensor:
        """Put the trained rows into a part of a table."""
        rows, columns = (*(slices or ()), slice(None), slice(None))[:2]
        start, stop, _ = rows.indices(self.config.vocab_size)
        if name not in self._rows:
            self._rows[name] = self._adapter.read(TRAINED_ROWS[name]).float()
        inside = [place for place, id_ in enumerate(self._adapter.rows[name]) if start <= id_ < stop]
        ids = torch.tensor([self._adapter.rows[name][place] - start for place in inside], dtype=torch.long)
        return table.index_copy(0, ids, self._rows[name][inside][:, columns])


def check_tied_tables(adapter: StoredAdapter, folder: Path) -> None:
    """Raise `MismatchError` when an adapter of a base with tied tables holds both tables, and they differ."""
    if set(adapter.tables) == {EMBEDDING, OUTPUT} and not torch.equal(adapter.read(EMBEDDING), adapter.read(OUTPUT)):
        raise MismatchError(
            f"{folder}: it holds two different tables, but its base uses the embedding as its output table, too.",
            hint="Merge it with the program that wrote it (PEFT: merge_and_unload, then save_pretrained).",
        )
