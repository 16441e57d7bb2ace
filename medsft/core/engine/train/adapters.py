"""An adapter as a run starts with it, and as its checkpoints record it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medsft.core.config.lora import TRAINED_ROWS
from medsft.core.engine.formats.adapters import StoredAdapter, open_adapter
from medsft.core.engine.formats.source import WeightSource
from medsft.core.engine.nn.adapters import Adapter, initial_factor
from medsft.core.engine.nn.dtensor import local_part, local_range
from medsft.core.models.adapter_folder import read_adapter
from medsft.core.planning.plan import RunPlan
from medsft.errors import MismatchError


def start_of(plan: RunPlan) -> StoredAdapter | None:
    """Open the adapter that a run begins with; None where it trains a new one. Raises `MismatchError` as `read_adapter`."""
    start = plan.base.adapter
    return None if start is None else open_adapter(read_adapter(Path(start.path)))


@torch.no_grad()
def begin_adapter(
    trained: Mapping[str, Tensor], adapter: Adapter, source: WeightSource, seed: int, start: StoredAdapter | None = None
) -> None:
    """Fill this rank's parts of what is trained, at every layout with the same numbers.

    A and B are those of `start`, else as `initial_factor` has them. Trained rows are as in the tables of `source`, but those
    that `start` has as there. Raises `MismatchError` for an adapter whose numbers are not finite.
    """
    tables = {own: table for table, own in TRAINED_ROWS.items()}
    for name, parameter in trained.items():
        local = local_part(parameter)
        if name in tables:
            local.copy_(_first_rows(name, tables[name], adapter, source, start))
            continue
        starts, sizes = local_range(parameter)
        whole = initial_factor(name, tuple(parameter.shape), seed) if start is None else _read(start, name)
        local.copy_(whole[tuple(slice(first, first + size) for first, size in zip(starts, sizes, strict=True))])


def _first_rows(name: str, table: str, adapter: Adapter, source: WeightSource, start: StoredAdapter | None) -> Tensor:
    """Return the trained rows of a table, called `name`, as training begins with them."""
    rows = torch.cat([source.read(table, (slice(row, row + 1),)).float() for row in adapter.rows])
    if start is not None and table in start.rows:
        rows[[adapter.rows.index(row) for row in start.rows[table]]] = _read(start, name)
    return rows


def _read(start: StoredAdapter, name: str) -> Tensor:
    values = start.read(name).float()
    if not bool(values.isfinite().all()):
        raise MismatchError(
            f"The adapter that the run begins with holds NaN or infinity, in {name}.",
            hint="Copy it again, or use another of its checkpoints.",
        )
    return values


def record_adapter(plan: RunPlan, adapter: Adapter) -> dict[str, Any]:
    """Return what a checkpoint's manifest says of the adapter in it: what it is made of, and of which base model it is."""
    lora = adapter.lora
    return {
        "kind": "lora",
        "rank": lora.rank,
        "alpha": lora.alpha,
        "targets": list(lora.targets),
        "rslora": lora.rslora,
        "base precision": adapter.base_precision,
        "trained rows": list(adapter.rows),
        "base model": plan.base.fingerprint,
    }


def adapter_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a line for each thing in which two records of adapters differ."""
    return [f"{key}: was {before.get(key)}, now {value}" for key, value in now.items() if before.get(key) != value]
