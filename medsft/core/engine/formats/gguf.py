"""GGUF files (llama.cpp) of Llama models, quantized or not, read as Hugging Face weights.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Quantized weights are expanded to fp32.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor
from gguf.quants import dequantize
from torch import Tensor

from medsft.core.engine.formats.source import Slices, WeightSource, sha256_of_files
from medsft.core.models.gguf import config_of, gguf_name, open_reader

_PLAIN = {GGMLQuantizationType.F32: torch.float32, GGMLQuantizationType.F16: torch.float16}
"""Types that are stored as they are; all others are expanded to fp32."""


def open_gguf(path: Path) -> WeightSource:
    """Open a GGUF file of architecture `llama`. Raises `MismatchError` for a damaged file or another architecture."""
    return _GGUFSource(path, open_reader(path))


class _GGUFSource:
    """Weights in one memory-mapped GGUF file."""

    def __init__(self, path: Path, reader: GGUFReader) -> None:
        self._path = path
        self._tensors: dict[str, ReaderTensor] = {tensor.name: tensor for tensor in reader.tensors}
        self.config = config_of(path)

    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.config.parameter_shapes())

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(int(size) for size in reversed(self._stored(name).shape))

    def dtype(self, name: str) -> torch.dtype:
        return _PLAIN.get(self._stored(name).tensor_type, torch.float32)

    def read(self, name: str, slices: Slices | None = None) -> Tensor:
        stored = self._stored(name)
        rows, rest = (slices[0], slices[1:]) if slices else (slice(None), ())
        picked = stored.data[self._stored_rows(name, len(stored.data))[rows]]
        if stored.tensor_type not in _PLAIN:
            picked = dequantize(picked, stored.tensor_type)
        return torch.from_numpy(np.array(picked[(slice(None), *rest)]))

    def file(self, name: str) -> Path:
        return self._path

    def fingerprint(self) -> str:
        return sha256_of_files([self._path])

    def _stored(self, name: str) -> ReaderTensor:
        return self._tensors[gguf_name(name)]

    def _stored_rows(self, name: str, count: int) -> np.ndarray:
        """Return for each row of the Hugging Face weight the row of the file that holds it.

        llama.cpp rotates neighboring elements of a head, Hugging Face element i with element i + d / 2; so the rows of
        query and key projections lie in another order in the file: 0, d/2, 1, d/2 + 1, ...
        """
        rows = np.arange(count)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            return rows.reshape(-1, self.config.head_dim // 2, 2).swapaxes(1, 2).reshape(-1)
        return rows
