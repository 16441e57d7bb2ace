"""Which weights a run trains.

This is the one place that says so. The optimizer, the fp32 master weights, checkpoints and the memory plan are made for these
names. Weights of the base model that are not among them are frozen: they are kept in the compute format, or in that of
`--base_precision`, read from the base model at each start, and neither updated nor saved.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from medsft.core.config.lora import TRAINED_ROWS, LoraSpec
from medsft.core.models.config import ModelConfig


def trainable_shapes(model: ModelConfig, lora: LoraSpec | None = None, rows: int = 0) -> dict[str, tuple[int, ...]]:
    """Return name and full shape of what a run of `model` trains: all weights, or with `lora` an adapter and rows of tables.

    `config.lora` has the names of A, B and the rows [rows, hidden]. A tied output projection has no rows of its own.
    """
    shapes = dict(model.parameter_shapes())
    if lora is None:
        return shapes
    trained = {own: (rows, shapes[table][1]) for table, own in TRAINED_ROWS.items() if table in shapes and rows}
    return {**dict(lora.shapes(model)), **trained}


def trainable_names(model: ModelConfig, lora: LoraSpec | None = None, rows: int = 0) -> frozenset[str]:
    """Return the names of `trainable_shapes`."""
    return frozenset(trainable_shapes(model, lora, rows))


def count_trainable(model: ModelConfig, trainable: Collection[str]) -> int:
    """Count the parameters of the weights named in `trainable`; a tied output projection counts once."""
    return sum(math.prod(shape) for name, shape in model.parameter_shapes() if name in trainable)
