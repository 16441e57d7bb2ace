"""What a training step measured, in words: one way to write each value, for lines, bars and screens."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from medsft.core.units import byte_size, duration


@dataclass(frozen=True, slots=True)
class Measure:
    """How one value of a `step` event is written."""

    label: str
    """On a screen."""
    in_line: str
    """In a line of text; `{}` stands for the value."""
    write: Callable[[float], str]


MEASURES: Mapping[str, Measure] = MappingProxyType(
    {
        "loss": Measure("loss", "loss {}", "{:.4f}".format),
        "lr": Measure("learning rate", "lr {}", "{:.2e}".format),
        "grad_norm": Measure("gradient norm", "grad norm {}", "{:.3f}".format),
        "tokens_per_second": Measure("tokens/s", "{} tokens/s", "{:,.0f}".format),
        "memory_bytes": Measure("memory per rank", "{}", byte_size),
        "eta_seconds": Measure("time left", "{} left", duration),
    }
)
"""The values of a step by their names in events, in the order of a line."""
_NULL_IS_NOT_FINITE = ("loss", "grad_norm")
"""JSON has no number for such a value, so events have null."""


def measured(name: str, value: float | None) -> str:
    """Return a value as text: `-` where there is none, and words for one that is no finite number."""
    if value is None:
        return "-"
    return MEASURES[name].write(value) if math.isfinite(value) else "not finite"


def step_line(values: Mapping[str, Any], names: Collection[str] = tuple(MEASURES)) -> str:
    """Return those of a step's values that are there, in one line."""
    parts = []
    for name in names:
        value = values.get(name)
        if value is not None:
            parts.append(MEASURES[name].in_line.format(measured(name, value)))
        elif name in values and name in _NULL_IS_NOT_FINITE:
            parts.append(MEASURES[name].in_line.format("not finite"))
    return "  ".join(parts)
