"""A rank's shards of the weights, filled straight from the base model's files: no rank holds a weight that it does not own.

Weights in nf4 are quantized on the way, some rows at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from medsft.core.engine.formats.source import WeightSource
from medsft.core.engine.nn.dtensor import local_part, local_range
from medsft.core.engine.nn.quantized import QuantizedWeight
from medsft.errors import MismatchError


@torch.no_grad()
def load_weights(parameters: Mapping[str, Tensor | QuantizedWeight], source: WeightSource) -> None:
    """Copy the weights of `source` into this rank's shards of `parameters`, whichever part of the model they are.

    Raises `MismatchError`, naming tensor and file, for weights that are not finite: the documents would be blamed later.
    """
    for name, parameter in parameters.items():
        if isinstance(parameter, QuantizedWeight):
            parameter.fill(partial(_read_rows, source, name))
            continue
        starts, shape = local_range(parameter)
        local = local_part(parameter)
        if local.numel():
            slices = tuple(slice(start, start + length) for start, length in zip(starts, shape, strict=True))
            local.copy_(source.read(name, slices))
            _check_finite(local, source, name)


def _read_rows(source: WeightSource, name: str, rows: slice) -> Tensor:
    found = source.read(name, (rows,))
    _check_finite(found, source, name)
    return found


def _check_finite(values: Tensor, source: WeightSource, name: str) -> None:
    """Look for NaN and infinity, without a tensor of truth values as long as the weight."""
    least, largest = torch.aminmax(values)  # both are NaN where one of the values is
    if not (math.isfinite(least) and math.isfinite(largest)):
        raise MismatchError(
            f"{source.file(name)}: the weights of the base model hold NaN or infinity, in {name}.",
            hint="Copy or download the base model again, or use another of its checkpoints.",
        )
