"""Which weights of a model a run trains.

This is the one place that says so. The optimizer, the fp32 master weights, checkpoints and the memory plan are made for these
names. All other weights are frozen: they are kept in the compute format, read from the base model at each start, and neither
updated nor saved.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from medsft.core.models.config import ModelConfig


def trainable_names(model: ModelConfig) -> frozenset[str]:
    """Return the Hugging Face names of the weights that a run of `model` trains: all of them."""
    return frozenset(name for name, _ in model.parameter_shapes())


def count_trainable(model: ModelConfig, trainable: Collection[str]) -> int:
    """Count the parameters of the weights named in `trainable`; a tied output projection counts once."""
    return sum(math.prod(shape) for name, shape in model.parameter_shapes() if name in trainable)
