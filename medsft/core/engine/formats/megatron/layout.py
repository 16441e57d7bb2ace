"""Where each weight lies in a Megatron-LLM checkpoint, for any tensor-parallel (tp) and pipeline (pp) size.

Reading and writing both go through `place`. Symbols: L layers, h hidden, H query heads, K key/value heads, d head size,
g = H / K queries per key head, f size of the MLP, t rank of tp.

- Word embedding and lm_head [V, h]: rank t has rows t*V/tp onwards.
- query_key_value [(H + 2K) d, h]: K groups of rows, each g query heads, their key head and their value head, cut into tp
  equal parts. Inside each query and key head the rows are interleaved: Megatron-LLM rotates the pairs (2i, 2i+1), Hugging
  Face the pairs (i, i + d/2).
- dense_h_to_4h [2f, h]: rank t has its f/tp rows of up_proj, then its f/tp rows of gate_proj.
- attention dense [h, H d] and dense_4h_to_h [h, f]: cut by columns.
- Norms [h]: the same on every rank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from medsft.core.models.config import ModelConfig
from medsft.errors import MismatchError

EMBEDDING, LM_HEAD, FINAL_NORM = "embedding", "lm_head", "final_layernorm.weight"
"""Our keys for the three tensors outside the layers."""

QKV, DENSE = "self_attention.query_key_value.weight", "self_attention.dense.weight"
UP_GATE, DOWN = "mlp.dense_h_to_4h.weight", "mlp.dense_4h_to_h.weight"
_LAYER_KEYS = {
    "input_layernorm.weight": "input_layernorm.weight",
    "self_attn.q_proj.weight": QKV,
    "self_attn.k_proj.weight": QKV,
    "self_attn.v_proj.weight": QKV,
    "self_attn.o_proj.weight": DENSE,
    "post_attention_layernorm.weight": "post_attention_layernorm.weight",
    "mlp.up_proj.weight": UP_GATE,
    "mlp.gate_proj.weight": UP_GATE,
    "mlp.down_proj.weight": DOWN,
}
LAYER_KEYS = tuple(dict.fromkeys(_LAYER_KEYS.values()))
"""Keys of one layer in the trainer's spelling, in its order."""
_TOP_KEYS = {"model.embed_tokens.weight": EMBEDDING, "lm_head.weight": LM_HEAD, "model.norm.weight": FINAL_NORM}
_LAYER_NAME = re.compile(r"model\.layers\.(\d+)\.(.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a Hugging Face weight lies: index i of its dimension `axis` is index `local[i]` of the tensor on rank `rank[i]`."""

    layer: int | None
    """Global layer number; None outside the layers."""
    key: str
    """Key in the trainer's spelling, without `layers.N.`."""
    axis: int | None
    """The dimension that is cut; None for a weight that every rank has whole."""
    rank: Tensor
    local: Tensor
    """int64, one entry for each index of `axis`; empty where `axis` is None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """The layers that stand together in one `model` dictionary of a pipeline stage."""

    stage: int
    index: int
    """Which of the stage's dictionaries: 0, or more with a virtual pipeline (`model0`, `model1`, ...)."""
    layers: range
    """Global layer numbers; in the file they count from 0."""


def place(name: str, config: ModelConfig, tp: int, table_rows: int, *, legacy_rotary: bool = False) -> Placement:
    """Say where the weight `name` lies. `table_rows` are those of the padded embedding.

    `legacy_rotary` is for files from before the interleaving of query and key rows existed.
    """
    layer, key, part = _keys(name)
    empty = torch.empty(0, dtype=torch.int64)
    if key in (EMBEDDING, LM_HEAD):
        rows, total, axis = torch.arange(min(config.vocab_size, table_rows)), table_rows, 0
    elif key == QKV:
        rows, total, axis = _fused_rows(part, config, legacy_rotary), _heads_in_all(config) * config.head_dim, 0
    elif key == UP_GATE:
        return _half(layer, part, config.intermediate_size, tp)
    elif key in (DENSE, DOWN):
        total, axis = config.num_heads * config.head_dim if key == DENSE else config.intermediate_size, 1
        rows = torch.arange(total)
    else:
        return Placement(layer=layer, key=key, axis=None, rank=empty, local=empty)
    per_rank = total // tp
    return Placement(layer=layer, key=key, axis=axis, rank=rows // per_rank, local=rows % per_rank)


def shard_shape(key: str, config: ModelConfig, tp: int, table_rows: int) -> tuple[int, ...]:
    """Return the shape of a tensor in each rank's file."""
    h, f = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        EMBEDDING: (table_rows // tp, h),
        LM_HEAD: (table_rows // tp, h),
        QKV: (_heads_in_all(config) * config.head_dim // tp, h),
        DENSE: (h, config.num_heads * config.head_dim // tp),
        UP_GATE: (2 * f // tp, h),
        DOWN: (h, f // tp),
    }
    return shapes.get(key, (h,))


def hf_names(layer: int | None, key: str) -> tuple[str, ...]:
    """Return the Hugging Face weights that make up one Megatron-LLM tensor."""
    if layer is None:
        return tuple(name for name, top in _TOP_KEYS.items() if top == key)
    return tuple(f"model.layers.{layer}.{name}" for name, inner in _LAYER_KEYS.items() if inner == key)


def chunks(num_layers: int, pp: int, virtual: int = 1) -> Iterator[Chunk]:
    """Yield the chunks of layers: chunk c of stage p starts at layer c*(L/virtual) + p*(L/(virtual*pp))."""
    size = num_layers // (pp * virtual)
    for index in range(virtual):
        for stage in range(pp):
            start = (index * pp + stage) * size
            yield Chunk(stage=stage, index=index, layers=range(start, start + size))


def padded_rows(vocab_size: int, divisible_by: int, tp: int) -> int:
    """Return the smallest multiple of `divisible_by * tp` that is at least `vocab_size`."""
    unit = divisible_by * tp
    return math.ceil(vocab_size / unit) * unit


def check_divisible(config: ModelConfig, tp: int, pp: int) -> None:
    """Raise `MismatchError` unless the model can be cut into tp by pp parts that the original can run."""
    for count, what, parts, option in (
        (config.num_heads, "attention heads", tp, "tp"),
        (config.num_kv_heads, "key/value heads", tp, "tp"),
        (config.intermediate_size, "rows of the MLP", tp, "tp"),
        (config.num_layers, "layers", pp, "pp"),
    ):
        if parts < 1 or count % parts:
            raise MismatchError(
                f"{option}={parts} does not divide the model's {count} {what}.",
                hint=f"Choose another --{option}, one that divides {count}.",
            )


def _keys(name: str) -> tuple[int | None, str, str]:
    """Return (layer, key, Hugging Face name inside the layer)."""
    if match := _LAYER_NAME.fullmatch(name):
        return int(match[1]), _LAYER_KEYS[match[2]], match[2]
    return None, _TOP_KEYS[name], name


def _heads_in_all(config: ModelConfig) -> int:
    return config.num_heads + 2 * config.num_kv_heads


def _fused_rows(part: str, config: ModelConfig, legacy_rotary: bool) -> Tensor:
    """Return, for each row of q_proj, k_proj or v_proj, its row of the whole query_key_value matrix."""
    d, group = config.head_dim, config.num_heads // config.num_kv_heads
    in_head = torch.arange(d)
    if "v_proj" not in part and not legacy_rotary:
        in_head = 2 * (in_head % (d // 2)) + in_head // (d // 2)
    if "q_proj" in part:
        head = torch.arange(config.num_heads)
        block = head // group * (group + 2) + head % group
    else:
        block = torch.arange(config.num_kv_heads) * (group + 2) + group + ("v_proj" in part)
    return (block[:, None] * d + in_head).flatten()


def _half(layer: int | None, part: str, f: int, tp: int) -> Placement:
    rows, per_rank = torch.arange(f), f // tp
    offset = per_rank if "gate_proj" in part else 0
    return Placement(layer=layer, key=UP_GATE, axis=0, rank=rows // per_rank, local=rows % per_rank + offset)
