"""A rank's shards of the weights, filled straight from the base model's files: no rank holds a weight that it does not own."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from medsft.core.engine.formats.source import WeightSource
from medsft.core.engine.nn.dtensor import local_part, local_range
from medsft.errors import MismatchError


@torch.no_grad()
def load_weights(parameters: Mapping[str, Tensor], source: WeightSource) -> None:
    """Copy the weights of `source` into this rank's shards of `parameters`, whichever part of the model they are.

    Raises `MismatchError`, naming tensor and file, for weights that are not finite: the documents would be blamed later.
    """
    for name, parameter in parameters.items():
        starts, shape = local_range(parameter)
        local = local_part(parameter)
        if local.numel():
            slices = tuple(slice(start, start + length) for start, length in zip(starts, shape, strict=True))
            local.copy_(source.read(name, slices))
            if not _is_finite(local):
                raise MismatchError(
                    f"{source.file(name)}: the weights of the base model hold NaN or infinity, in {name}.",
                    hint="Copy or download the base model again, or use another of its checkpoints.",
                )


def _is_finite(values: Tensor) -> bool:
    """Tell whether there is neither NaN nor infinity, without a tensor of truth values as long as the weight."""
    least, largest = torch.aminmax(values)  # both are NaN where one of the values is
    return math.isfinite(least) and math.isfinite(largest)
