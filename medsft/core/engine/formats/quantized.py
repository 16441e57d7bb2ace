"""The base model as an adapter was trained on it, where its matrices were held in nf4."""

from __future__ import annotations

import torch
from torch import Tensor

from medsft.core.engine.formats.source import Slices, SourceAround
from medsft.core.engine.kernels.nf4 import Part, pack, unpack
from medsft.core.models.nf4 import is_quantized


class QuantizedSource(SourceAround):
    """Another source with the matrices of its layers as nf4 gives them back, in fp32. All other weights are as they were."""

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype that `read` gives."""
        return torch.float32 if is_quantized(name) else self._source.dtype(name)

    def read(self, name: str, slices: Slices | None = None) -> Tensor:
        """Return a weight, or the part of it in `slices`, whose step is 1."""
        if not is_quantized(name):
            return self._source.read(name, slices)
        rows, columns = self._source.shape(name)
        row_slice, column_slice = (*(slices or ()), slice(None), slice(None))[:2]
        part = Part((rows, columns), range(rows)[row_slice], range(columns)[column_slice])
        out = torch.empty(part.size)
        return unpack(pack(part, lambda some: self._source.read(name, (some,))), part, out) if out.numel() else out
