"""The model that a GGUF file (llama.cpp) holds, from its metadata and tensor names. No torch.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The head is read here first, within limits, and only a
file that has passed is given to the library, which believes every count in it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from medsft.core.models.checked_json import Values, plain, refuse_pointer
from medsft.core.models.config import ModelConfig, check_sizes
from medsft.core.models.tensors import check_complete, check_left_over
from medsft.errors import MismatchError

if TYPE_CHECKING:
    from gguf import GGUFReader

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MOST_FIELDS, _MOST_TENSORS, _MOST_DIMENSIONS, _LONGEST_NAME = 10_000, 100_000, 4, 1_000
_LONGEST_STRING = 16 * 2**20
"""Bytes; chat templates are the longest."""
_MOST_ITEMS = 8_000_000
"""Items of a list: two for each token of the largest vocabulary that is taken."""
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
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
_STEMS = {stored: name for name, stored in (_TOP | _IN_LAYER).items()}


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a file."""

    metadata: Mapping[str, Any]
    """Plain values by key; a list only as the number of its items, because the lists are the tokenizer's."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of each tensor, in the order of torch: rows first."""


def open_reader(path: Path) -> GGUFReader:
    """Open a GGUF file, memory-mapped. Raises `MismatchError` when it is damaged."""
    config_of(path)
    from gguf import GGUFReader  # here, so that looking at a folder does not wait for its import

    try:
        return GGUFReader(path)
    except (ValueError, LookupError, OSError) as error:
        raise MismatchError(f"{path}: cannot be read as GGUF: {error}", hint="Copy the file again.") from None


def config_of(path: Path) -> ModelConfig:
    """Return the model's description of a file whose tensors are all there. A file that has not changed is read once.

    Raises `MismatchError` for a damaged file, for an architecture or a feature that medsft does not implement, and for tensors
    that are missing, of another shape, or left out though they change what the model computes.
    """
    stamp = path.stat()
    return _config_of(path, stamp.st_mtime_ns, stamp.st_size)


@lru_cache(maxsize=8)
def _config_of(path: Path, _mtime_ns: int, _size: int) -> ModelConfig:
    head = read_head(path)
    config = _read_config(head, where=str(path))
    shapes = {hf_name(name): shape for name, shape in head.shapes.items()}
    check_complete(config, shapes, where=str(path))
    check_left_over(config, shapes, where=str(path))
    return config


def gguf_name(name: str) -> str:
    """Return the name in a GGUF file of a Hugging Face weight."""
    stem, _, kind = name.rpartition(".")
    if not stem.startswith("model.layers."):
        return f"{_TOP[stem]}.{kind}"
    layer, _, module = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_IN_LAYER[module]}.{kind}"


def hf_name(name: str) -> str:
    """Return the Hugging Face name of a tensor in a GGUF file; one that is not known keeps its own, as part of the model."""
    stem, _, kind = name.rpartition(".")
    block, _, rest = stem.partition(".")
    layer, _, module = rest.partition(".")
    if block == "blk" and layer.isdecimal():
        return f"model.layers.{layer}.{_STEMS.get(module, module)}.{kind}"
    return f"{_STEMS[stem]}.{kind}" if stem in _STEMS else f"model.{name}"


def read_head(path: Path) -> Head:
    """Return the head of a GGUF file. Raises `MismatchError` for one that is none, is cut, or claims what no model has."""
    try:
        with path.open("rb") as file:
            return _Reader(path, file, path.stat().st_size).head()
    except (struct.error, UnicodeDecodeError, EOFError):
        raise _damaged(path, "its head is cut short or damaged") from None
    except OSError as error:
        raise MismatchError(f"{path}: cannot be read: {error.strerror or error}.") from None


def _damaged(path: Path, why: str) -> MismatchError:
    return MismatchError(f"{path}: cannot be read as GGUF: {why}.", hint="Copy the file again.")


class _Reader:
    """Steps through the head of a file, no further than the file goes and no further than a model needs."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self._path, self._file, self._size = path, file, size

    def head(self) -> Head:
        start = self._file.read(128)
        refuse_pointer(self._path, start)
        if start[:4] != b"GGUF":
            raise _damaged(self._path, "it does not begin as one")
        self._file.seek(4)
        version = self._number("<I")
        if version not in (2, 3):
            raise _damaged(self._path, f"version {version} is not 2 or 3 (or its bytes are in the other order)")
        tensors = self._count("<Q", _MOST_TENSORS, "tensors")
        fields = self._count("<Q", _MOST_FIELDS, "fields")
        metadata = {}
        for _ in range(fields):
            key = self._string(_LONGEST_NAME)
            metadata[key] = self._value(self._number("<I"))
        shapes = dict(self._tensor() for _ in range(tensors))
        return Head(metadata, shapes)

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _take(self, length: int) -> bytes:
        content = self._file.read(length)
        if len(content) < length:
            raise EOFError
        return content

    def _skip(self, length: int) -> None:
        if self._file.tell() + length > self._size:
            raise EOFError
        self._file.seek(length, 1)

    def _count(self, form: str, most: int, what: str) -> int:
        count = int(self._number(form))
        if count > most:
            raise _damaged(self._path, f"{count:,} {what}, where {most:,} are the most that is taken")
        return count

    def _string(self, longest: int) -> str:
        return self._take(self._count("<Q", longest, "bytes in a text")).decode("utf-8", "replace")

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _STRING:
            return self._string(_LONGEST_STRING)
        if kind != _ARRAY:
            raise _damaged(self._path, f"a field of the unknown type {kind}")
        of, count = self._number("<I"), self._count("<Q", _MOST_ITEMS, "items in a list")
        if of in _SCALARS:
            self._skip(count * struct.calcsize(_SCALARS[of]))
        elif of == _STRING:
            for _ in range(count):
                self._skip(self._count("<Q", _LONGEST_STRING, "bytes in a text"))
        else:
            raise _damaged(self._path, "a list of lists")
        return [count]

    def _tensor(self) -> tuple[str, tuple[int, ...]]:
        name = self._string(_LONGEST_NAME)
        dimensions = self._count("<I", _MOST_DIMENSIONS, "dimensions of a tensor")
        shape = tuple(self._number("<Q") for _ in range(dimensions))
        self._number("<I")  # type
        offset = self._number("<Q")
        if offset > self._size or math.prod(shape) > 32 * self._size:  # the tightest packing has more than 1.5 bits a weight
            raise _damaged(self._path, "cut short: a tensor lies behind its end")
        return name, tuple(reversed(shape))


def _read_config(head: Head, *, where: str) -> ModelConfig:
    values = Values(head.metadata, where)
    if (architecture := values.text("general.architecture")) != "llama":
        raise MismatchError(
            f"{where}: GGUF architecture `{plain(architecture)}` is not supported.",
            hint="Supported: `llama`. Use the model's Hugging Face folder.",
        )
    if values.whole("llama.expert_count", default=0, low=0, high=1 << 31):
        raise MismatchError(f"{where}: mixtures of experts are not supported.")
    most = 1 << 31
    heads, hidden = (values.whole(f"llama.{name}", high=most) for name in ("attention.head_count", "embedding_length"))
    config = ModelConfig(
        family="llama",
        vocab_size=head.shapes.get("token_embd.weight", (0,))[0],
        hidden_size=hidden,
        intermediate_size=values.whole("llama.feed_forward_length", high=most),
        num_layers=values.whole("llama.block_count", high=most),
        num_heads=heads,
        num_kv_heads=values.whole("llama.attention.head_count_kv", default=heads, high=most),
        head_dim=values.whole("llama.attention.key_length", default=None, high=most) or max(1, hidden // heads),
        # It is stored in 32 bits: 1e-5 reads 9.99999975e-6.
        norm_eps=float(f"{values.number('llama.attention.layer_norm_rms_epsilon', high=1.0):.6g}"),
        rope_theta=values.number("llama.rope.freq_base", default=10000.0),
        rope_scaling=_rope_scaling(values, head),
        max_position_embeddings=values.whole("llama.context_length", high=most),
        tie_embeddings="output.weight" not in head.shapes,
        bos_token_id=values.whole("tokenizer.ggml.bos_token_id", default=None, low=0, high=1 << 32),
        eos_token_id=values.whole("tokenizer.ggml.eos_token_id", default=None, low=0, high=1 << 32),
    )
    check_sizes(config, where)
    return config


def _rope_scaling(values: Values, head: Head) -> dict[str, Any] | None:
    """Read linear scaling. Llama 3.1's is only there as a table of factors, from which its parameters do not follow."""
    kind = values.text("llama.rope.scaling.type", default="none")
    if "rope_freqs.weight" in head.shapes or kind not in ("none", "linear"):
        raise MismatchError(
            f"{values.where}: the scaling of its rotary positions cannot be read from GGUF.",
            hint="Use the model's Hugging Face folder.",
        )
    factor = values.number("llama.rope.scaling.factor", default=1.0)
    return {"rope_type": "linear", "factor": factor} if kind == "linear" and factor != 1.0 else None
