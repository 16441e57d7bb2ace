"""The model that a GGUF file (llama.cpp) holds, from its metadata and tensor names. No torch.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsft.core.architecture import ModelConfig
from medsft.errors import MismatchError

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor


def open_reader(path: Path) -> GGUFReader:
    """Open a GGUF file, memory-mapped. Raises `MismatchError` when it is damaged."""
    from gguf import GGUFReader  # here, so that looking at a folder does not wait for its import

    try:
        return GGUFReader(path)
    except (ValueError, LookupError, OSError) as error:
        raise MismatchError(f"{path}: cannot be read as GGUF: {error}", hint="Copy the file again.") from None


def config_of(path: Path) -> ModelConfig:
    """Return the model's description of a file. Raises `MismatchError` as `open_reader` and `read_config` do.

    It takes a second or two to step through the tokenizer's words, so a file that has not changed is read once.
    """
    stamp = path.stat()
    return _config_of(path, stamp.st_mtime_ns, stamp.st_size)


@lru_cache(maxsize=8)
def _config_of(path: Path, _mtime_ns: int, _size: int) -> ModelConfig:
    return read_config(open_reader(path), where=str(path))


def read_config(reader: GGUFReader, *, where: str) -> ModelConfig:
    """Return the model's description; `where` names the file in errors.

    Raises `MismatchError` for an architecture or a feature that medsft does not implement, and for missing metadata.
    """
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    metadata = _Metadata(reader, where)
    if (architecture := metadata["general.architecture"]) != "llama":
        raise MismatchError(
            f"{where}: GGUF architecture `{architecture}` is not supported.",
            hint="Supported: `llama`. Use the model's Hugging Face folder.",
        )
    if metadata.get("llama.expert_count"):
        raise MismatchError(f"{where}: mixtures of experts are not supported.")
    heads, hidden = metadata["llama.attention.head_count"], metadata["llama.embedding_length"]
    return ModelConfig(
        family="llama",
        vocab_size=int(tensors["token_embd.weight"].shape[1]) if "token_embd.weight" in tensors else 0,
        hidden_size=hidden,
        intermediate_size=metadata["llama.feed_forward_length"],
        num_layers=metadata["llama.block_count"],
        num_heads=heads,
        num_kv_heads=metadata.get("llama.attention.head_count_kv", heads),
        head_dim=metadata.get("llama.attention.key_length", hidden // heads),
        # It is stored in 32 bits: 1e-5 reads 9.99999975e-6.
        norm_eps=float(f"{metadata['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        rope_theta=float(metadata.get("llama.rope.freq_base", 10000.0)),
        rope_scaling=_rope_scaling(metadata, tensors, where),
        max_position_embeddings=metadata["llama.context_length"],
        tie_embeddings="output.weight" not in tensors,
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=metadata.get("tokenizer.ggml.eos_token_id"),
    )


def _rope_scaling(metadata: _Metadata, tensors: Mapping[str, ReaderTensor], where: str) -> dict[str, Any] | None:
    """Read linear scaling. Llama 3.1's is only there as a table of factors, from which its parameters do not follow."""
    kind = metadata.get("llama.rope.scaling.type", "none")
    if "rope_freqs.weight" in tensors or kind not in ("none", "linear"):
        raise MismatchError(
            f"{where}: the scaling of its rotary positions cannot be read from GGUF.",
            hint="Use the model's Hugging Face folder.",
        )
    factor = float(metadata.get("llama.rope.scaling.factor", 1.0))
    return {"rope_type": "linear", "factor": factor} if kind == "linear" and factor != 1.0 else None


class _Metadata:
    """The key/value part of a GGUF file."""

    def __init__(self, reader: GGUFReader, where: str) -> None:
        self._fields = reader.fields
        self._where = where

    def get(self, key: str, default: Any = None) -> Any:
        field = self._fields.get(key)
        return default if field is None else field.contents()

    def __getitem__(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise MismatchError(f"{self._where}: the field `{key}` is missing in its metadata.")
        return value
