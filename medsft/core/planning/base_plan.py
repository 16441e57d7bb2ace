"""The base model as `plan.json` records it, and the adapter of it that a run begins with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from medsft.core.models.config import ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class StartAdapter:
    """An adapter on disk from which training goes on: its A, B and rows of tables are what the run begins with."""

    path: str
    fingerprint: str
    """`planning.base.sampled_fingerprint` of its tensors."""
    rows: tuple[int, ...] = ()
    """Ascending: the rows of the tables of tokens that it has values for, in any of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BasePlan:
    """The base model and what becomes of its vocabulary."""

    path: str
    kind: str
    iteration: int | None
    fingerprint: str
    tokenizer: str
    model: ModelConfig
    """Sizes after new tokens: `vocab_size` is the tokenizer's, at least the table's."""
    base_vocab_size: int
    new_tokens: tuple[str, ...]
    """Tokens of the template that get rows behind those of the base's tables."""
    bytes: int
    reused_rows: Mapping[str, int] = field(default_factory=dict)
    """Tokens that the base's tokenizer did not have and whose rows lie in the padding of its tables: as new as `new_tokens`."""
    control_tokens: Mapping[str, int] = field(default_factory=dict)
    """Control tokens of the base's tokenizer that the documents hold: their rows are looked at before the first iteration."""
    token_rows: int | None = None
    """Rows of the base's tables that belong to tokens; None (in a plan of medsft 0.1.0, too): all of them."""
    adapter: StartAdapter | None = None
    """The adapter of this base that the run begins with."""

    @property
    def added_tokens(self) -> tuple[str, ...]:
        """Return the tokens that the base's tokenizer did not have, wherever their rows lie."""
        return (*self.new_tokens, *self.reused_rows)

    @property
    def trained_rows(self) -> int:
        """Return how many rows of each table an adapter trains: those of added tokens, and those of the adapter before it."""
        if self.adapter is None:
            return len(self.added_tokens)
        new = range(self.base_vocab_size, self.model.vocab_size)
        return len({*self.adapter.rows, *new, *self.reused_rows.values()})

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> BasePlan:
        """Build it from `plan.json`. Raises TypeError, KeyError or AttributeError for what is none."""
        start = raw.get("adapter")
        adapter = None if start is None else rebuilt(StartAdapter, start)
        found: BasePlan = rebuilt(cls, raw, model=rebuilt(ModelConfig, raw["model"]), adapter=adapter)
        return found


def rebuilt(kind: type, raw: Mapping[str, Any], **built: Any) -> Any:
    """Return a dataclass of its fields as JSON has them, with lists for tuples; `built` are those that are no plain values."""
    values = {**raw, **built}
    return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
