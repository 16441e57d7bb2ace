"""An adapter as a run starts with it, and as its checkpoints record it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from medsft.core.config.lora import TRAINED_ROWS
from medsft.core.engine.formats.source import WeightSource
from medsft.core.engine.nn.adapters import Adapter, initial_factor
from medsft.core.engine.nn.dtensor import local_part, local_range
from medsft.core.planning.plan import RunPlan


@torch.no_grad()
def begin_adapter(trained: Mapping[str, Tensor], adapter: Adapter, source: WeightSource, seed: int) -> None:
    """Fill this rank's parts of what is trained, at every layout with the same numbers.

    A and B are as `initial_factor` has them, trained rows as in the tables of `source`.
    """
    tables = {own: table for table, own in TRAINED_ROWS.items()}
    for name, parameter in trained.items():
        local = local_part(parameter)
        if name in tables:
            for place, row in enumerate(adapter.rows):
                local[place] = source.read(tables[name], (slice(row, row + 1),))[0]
            continue
        starts, sizes = local_range(parameter)
        whole = initial_factor(name, tuple(parameter.shape), seed)
        local.copy_(whole[tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))])


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
