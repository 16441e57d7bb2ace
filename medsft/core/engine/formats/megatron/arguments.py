"""The `args` of a Megatron-LLM checkpoint, as our files have them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import torch

from medsft.core.models.config import ModelConfig
from medsft.core.models.megatron import FAMILY_CONSTANTS
from medsft.errors import MismatchError

_PLAIN = (str, int, float, bool, type(None))


def check_expressible(config: ModelConfig) -> None:
    """Raise `MismatchError` for a model that Megatron-LLM cannot run."""
    reasons = {
        "biases on the query, key and value projections": config.attention_bias,
        "norms on queries and keys": config.qk_norm,
        f"rope scaling `{(config.rope_scaling or {}).get('rope_type')}`": (config.rope_scaling or {}).get("rope_type", "linear")
        != "linear",
    }
    for reason, present in reasons.items():
        if present:
            raise MismatchError(
                f"A {config.family} model with {reason} cannot be written for Megatron-LLM, which has no such part.",
                hint="Write it as a Hugging Face folder (--to hf).",
            )


def build_args(
    config: ModelConfig,
    *,
    tp: int,
    pp: int,
    rank: int,
    dtype: torch.dtype,
    iteration: int | None,
    vocab_divisible_by: int,
    tokenizer_model: str | None,
    carried: Mapping[str, Any],
) -> argparse.Namespace:
    """Return what the original's trainer, resharding tool and exporter look for, in plain values.

    `config.vocab_size` counts the padded rows. `carried` are arguments of the run that trained the model; those that
    describe the model, the layout or the files are replaced.
    """
    progress = {"train_iters": None, "consumed_train_samples": 0, "consumed_valid_samples": 0, "seed": 1234}
    kept = {name: value for name, value in carried.items() if isinstance(value, _PLAIN)}
    positions = config.max_position_embeddings
    ours = {
        "num_layers": config.num_layers,
        "encoder_num_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "ffn_hidden_size": config.intermediate_size,
        "num_attention_heads": config.num_heads,
        "num_attention_heads_kv": config.num_kv_heads,
        "kv_channels": config.head_dim,
        "max_position_embeddings": positions,
        "seq_length": positions,
        "encoder_seq_length": positions,
        "layernorm_epsilon": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling_factor": float(config.rope_scaling["factor"]) if config.rope_scaling else 1.0,
        "sliding_window_size": config.sliding_window,
        "position_embedding_type": "rotary",
        "use_rms_norm": True,
        "glu_activation": "swiglu",
        "tie_embed_logits": False,
        "use_bias": False,
        "use_post_ln": False,
        "parallel_attn": False,
        "parallel_layernorm": False,
        "use_flash_attn": True,
        "bias_gelu_fusion": False,
        "bias_dropout_fusion": False,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "lima_dropout": False,
        "padded_vocab_size": config.vocab_size,
        "make_vocab_size_divisible_by": vocab_divisible_by,
        "tokenizer_type": "SentencePieceTokenizer",
        "vocab_file": tokenizer_model or kept.get("vocab_file"),
        "tensor_model_parallel_size": tp,
        "pipeline_model_parallel_size": pp,
        "virtual_pipeline_model_parallel_size": None,
        "num_layers_per_virtual_pipeline_stage": None,
        "data_parallel_size": 1,
        "world_size": tp * pp,
        "rank": rank,
        "sequence_parallel": tp > 1,
        "use_distributed_optimizer": False,
        "iteration": "release" if iteration is None else iteration,
        "params_dtype": dtype,
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
    }
    name = _model_name(config)
    kept.pop("model_name", None)
    return argparse.Namespace(**{**progress, **kept, **ours, **({"model_name": name} if name else {})})


def _model_name(config: ModelConfig) -> str | None:
    """Name the family whose constants the model has; none where a reader would take wrong ones from the name."""
    constants = (config.norm_eps, config.rope_theta)
    names = ("mistral",) if config.family == "mistral" else ("llama2", "llama", "codellama")
    return next((name for name in names if FAMILY_CONSTANTS[name] == constants), None)
