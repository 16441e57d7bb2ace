"""GGUF files (llama.cpp) of Llama models, quantised or not, read as Hugging Face weights.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Quantised weights are expanded to fp32.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor
from gguf.quants import dequantize
from torch import Tensor

from medsft.core.engine.formats.source import Slices, WeightSource, check_complete, sha256_of_files
from medsft.core.gguf_header import open_reader, read_config

_PLAIN = {GGMLQuantizationType.F32: torch.float32, GGMLQuantizationType.F16: torch.float16}
"""Types that are stored as they are; all others are expanded to fp32."""

_TOP = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_IN_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def open_gguf(path: Path) -> WeightSource:
    """Open a GGUF file of architecture `llama`. Raises `MismatchError` for a damaged file or another architecture."""
    return _GGUFSource(path, open_reader(path))


class _GGUFSource:
    """Weights in one memory-mapped GGUF file."""

    def __init__(self, path: Path, reader: GGUFReader) -> None:
        self._path = path
        self._tensors: dict[str, ReaderTensor] = {tensor.name: tensor for tensor in reader.tensors}
        self.config = read_config(reader, where=str(path))
        names = {name: _gguf_name(name) for name in self.names()}
        found = {name: self.shape(name) for name, stored in names.items() if stored in self._tensors}
        check_complete(self.config, found, where=str(path))

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

    def fingerprint(self) -> str:
        return sha256_of_files([self._path])

    def _stored(self, name: str) -> ReaderTensor:
        return self._tensors[_gguf_name(name)]

    def _stored_rows(self, name: str, count: int) -> np.ndarray:
        """Return for each row of the Hugging Face weight the row of the file that holds it.

        llama.cpp rotates neighbouring elements of a head, Hugging Face element i with element i + d / 2; so the rows of
        query and key projections lie in another order in the file: 0, d/2, 1, d/2 + 1, ...
        """
        rows = np.arange(count)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            return rows.reshape(-1, self.config.head_dim // 2, 2).swapaxes(1, 2).reshape(-1)
        return rows


def _gguf_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if not stem.startswith("model.layers."):
        return f"{_TOP[stem]}.{kind}"
    layer, _, module = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_IN_LAYER[module]}.{kind}"
