"""A second, naive writer of Megatron-LLM folders: loops over the layout's formulas, shares no code with the package."""

from __future__ import annotations

import argparse
import enum
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medsft.core.models.config import ModelConfig

SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_layers": 4,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
}


def random_weights(sizes: dict[str, int], seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Weights of a llama model in Hugging Face names."""
    generator = torch.Generator().manual_seed(seed)
    h, f, d = sizes["hidden_size"], sizes["intermediate_size"], sizes["head_dim"]
    q, kv = sizes["num_heads"] * d, sizes["num_kv_heads"] * d
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (sizes["vocab_size"], h)}
    for layer in range(sizes["num_layers"]):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "input_layernorm.weight": (h,),
            prefix + "self_attn.q_proj.weight": (q, h),
            prefix + "self_attn.k_proj.weight": (kv, h),
            prefix + "self_attn.v_proj.weight": (kv, h),
            prefix + "self_attn.o_proj.weight": (h, q),
            prefix + "post_attention_layernorm.weight": (h,),
            prefix + "mlp.gate_proj.weight": (f, h),
            prefix + "mlp.up_proj.weight": (f, h),
            prefix + "mlp.down_proj.weight": (h, f),
        }
    shapes |= {"model.norm.weight": (h,), "lm_head.weight": (sizes["vocab_size"], h)}
    return {name: (0.2 * torch.randn(shape, generator=generator)).to(dtype) for name, shape in shapes.items()}


def rotary_rows(head: Tensor) -> Tensor:
    """mega[2i + s] = hf[s * d/2 + i] for one head [d, h]."""
    d = len(head)
    result = torch.empty_like(head)
    for s in (0, 1):
        for i in range(d // 2):
            result[2 * i + s] = head[s * (d // 2) + i]
    return result


def fused_qkv(weights: dict[str, Tensor], prefix: str, sizes: dict[str, int]) -> Tensor:
    """K groups of [g queries, key, value]."""
    heads, kv, d = sizes["num_heads"], sizes["num_kv_heads"], sizes["head_dim"]
    q, k, v = (weights[f"{prefix}self_attn.{part}_proj.weight"].split(d) for part in "qkv")
    blocks = []
    for group in range(kv):
        blocks += [rotary_rows(q[n]) for n in range(group * (heads // kv), (group + 1) * (heads // kv))]
        blocks += [rotary_rows(k[group]), v[group]]
    return torch.cat(blocks)


def rank_model(weights: dict[str, Tensor], sizes: dict[str, int], layers: range, t: int, tp: int, style: str) -> dict[str, Any]:
    """The `model` dictionary of tensor rank t with these global layers, in the `trainer`'s or the `converter`'s spelling."""
    attention = {"trainer": "self_attention", "converter": "attention"}[style]
    body = OrderedDict()
    for local, layer in enumerate(layers):
        old, new = f"model.layers.{layer}.", f"layers.{local}."
        body[new + "input_layernorm.weight"] = weights[old + "input_layernorm.weight"]
        body[f"{new}{attention}.query_key_value.weight"] = fused_qkv(weights, old, sizes).chunk(tp)[t]
        body[f"{new}{attention}.dense.weight"] = weights[old + "self_attn.o_proj.weight"].chunk(tp, dim=1)[t]
        body[new + "post_attention_layernorm.weight"] = weights[old + "post_attention_layernorm.weight"]
        up, gate = (weights[f"{old}mlp.{part}_proj.weight"].chunk(tp)[t] for part in ("up", "gate"))
        body[new + "mlp.dense_h_to_4h.weight"] = torch.cat([up, gate])
        body[new + "mlp.dense_4h_to_h.weight"] = weights[old + "mlp.down_proj.weight"].chunk(tp, dim=1)[t]
    language: dict[str, Any] = {}
    if layers.start == 0:
        table = weights["model.embed_tokens.weight"].chunk(tp)[t].clone()
        nested = {"word_embeddings": OrderedDict(weight=table)}
        language["embedding"] = nested if style == "trainer" else {"word_embeddings.weight": table}
    if layers.stop == sizes["num_layers"]:
        body["final_layernorm.weight"] = weights["model.norm.weight"]
        language["lm_head"] = weights["lm_head.weight"].chunk(tp)[t].clone()
    language["encoder" if style == "trainer" else "transformer"] = OrderedDict((k, v.clone()) for k, v in body.items())
    return {"language_model": language}


def arguments(sizes: dict[str, int], tp: int, pp: int, **changes: Any) -> argparse.Namespace:
    """Arguments as a trainer saves them."""
    values = {
        "num_layers": sizes["num_layers"],
        "encoder_num_layers": sizes["num_layers"],
        "hidden_size": sizes["hidden_size"],
        "ffn_hidden_size": sizes["intermediate_size"],
        "num_attention_heads": sizes["num_heads"],
        "num_attention_heads_kv": sizes["num_kv_heads"],
        "kv_channels": sizes["head_dim"],
        "max_position_embeddings": 64,
        "seq_length": 64,
        "layernorm_epsilon": 1e-5,
        "rope_theta": 1e4,
        "rope_scaling_factor": 1.0,
        "use_rms_norm": True,
        "glu_activation": "swiglu",
        "tie_embed_logits": False,
        "position_embedding_type": "rotary",
        "padded_vocab_size": sizes["vocab_size"],
        "make_vocab_size_divisible_by": 128,
        "tokenizer_type": "SentencePieceTokenizer",
        "tensor_model_parallel_size": tp,
        "pipeline_model_parallel_size": pp,
        "params_dtype": torch.float32,
        "consumed_train_samples": 128,
    }
    return argparse.Namespace(**{**values, **changes})


def write_folder(
    root: Path,
    weights: dict[str, Tensor],
    sizes: dict[str, int],
    *,
    tp: int = 1,
    pp: int = 1,
    style: str = "trainer",
    iteration: int | str = "release",
    virtual: int = 1,
    file_name: str = "model_optim_rng.pt",
    extra: dict[str, Any] | None = None,
    **args: Any,
) -> Path:
    """Write a whole checkpoint and return the folder with its ranks."""
    folder = root / ("release" if iteration == "release" else f"iter_{iteration:07d}")
    per_chunk = sizes["num_layers"] // (pp * virtual)
    for t in range(tp):
        for p in range(pp):
            models = []
            for chunk in range(virtual):
                start = chunk * (sizes["num_layers"] // virtual) + p * per_chunk
                models.append(rank_model(weights, sizes, range(start, start + per_chunk), t, tp, style))
            content = {
                "args": arguments(sizes, tp, pp, **args),
                "checkpoint_version": 3.0,
                "iteration": iteration,
                **({"model": models[0]} if virtual == 1 else {f"model{i}": model for i, model in enumerate(models)}),
                **(extra or {}),
            }
            rank = folder / (f"mp_rank_{t:02d}" if pp == 1 else f"mp_rank_{t:02d}_{p:03d}")
            rank.mkdir(parents=True)
            torch.save(content, rank / file_name)
    (root / "latest_checkpointed_iteration.txt").write_text(str(iteration))
    return folder


class MegatronEnums:
    """`megatron.model.enums`, importable only inside the `with`: files are pickled with its names and read without it."""

    def __enter__(self) -> types.ModuleType:
        module = types.ModuleType("megatron.model.enums")
        for name, members in (
            ("PositionEmbeddingType", ["rotary", "absolute"]),
            ("ModelType", ["encoder_or_decoder", "encoder_and_decoder"]),
        ):
            setattr(module, name, enum.Enum(name, members, module=module.__name__))
        packages = {name: types.ModuleType(name) for name in ("megatron", "megatron.model")}
        sys.modules.update(packages | {module.__name__: module})
        return module

    def __exit__(self, *_: object) -> None:
        for name in ("megatron", "megatron.model", "megatron.model.enums"):
            del sys.modules[name]


class InMemory:
    """Weights in a dictionary, as a source."""

    def __init__(self, weights: dict[str, Tensor], config: ModelConfig) -> None:
        self.weights, self.config = weights, config

    def names(self) -> tuple[str, ...]:
        return tuple(self.weights)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.weights[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self.weights[name].dtype

    def read(self, name: str, slices: tuple[slice, ...] | None = None) -> Tensor:
        return self.weights[name][slices or ...].clone()

    def file(self, name: str) -> Path:
        return Path(name)

    def fingerprint(self) -> str:
        return "memory"
