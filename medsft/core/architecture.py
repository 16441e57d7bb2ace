"""The shape of a Llama-family model, as its `config.json` says it. No torch: plans are made from this alone.

Weight names everywhere in medsft are Hugging Face's (``model.layers.0.self_attn.q_proj.weight``); other formats
translate at their border. Linear weights are ``[out_features, in_features]``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medsft.errors import MismatchError

FAMILIES = {
    "llama": "Llama 1/2/3, CodeLlama, SmolLM and other models with model_type `llama`",
    "mistral": "Mistral",
    "qwen2": "Qwen 2 and 2.5",
    "qwen3": "Qwen 3 (dense)",
}
_READ_AS = "5.0.0"
"""The release of transformers from which on a tokenizer.json is taken as it is. Where `config.json` names none, or an older
one, 4.57 says of large vocabularies that they split words wrongly, and advises a flag that changes the ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Sizes and constants of a decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

    family: str
    """Hugging Face `model_type`: one of `FAMILIES`."""
    vocab_size: int
    """Rows of the embedding and of the output projection."""
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope_theta: float
    rope_scaling: Mapping[str, Any] | None = None
    """Hugging Face's dictionary with `rope_type` (`linear` or `llama3`), or None."""
    max_position_embeddings: int
    tie_embeddings: bool
    attention_bias: bool = False
    """Biases on the query, key and value projections (Qwen 2)."""
    qk_norm: bool = False
    """RMSNorm over each head's query and key (Qwen 3)."""
    sliding_window: int | None = None
    """A query sees this many tokens, itself included (Hugging Face's meaning), or all of them."""
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    other_end_token_ids: tuple[int, ...] = ()
    """Further ids at which a generation ends."""
    pad_token_id: int | None = None

    def with_vocab(self, vocab_size: int) -> ModelConfig:
        """Return the same model with another number of embedding rows."""
        return replace(self, vocab_size=vocab_size)

    def parameter_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield (Hugging Face name, full shape) of every parameter in the order of the forward pass."""
        h, d = self.hidden_size, self.head_dim
        yield "model.embed_tokens.weight", (self.vocab_size, h)
        for layer in range(self.num_layers):
            prefix = f"model.layers.{layer}."
            yield prefix + "input_layernorm.weight", (h,)
            for name, heads in (("q", self.num_heads), ("k", self.num_kv_heads), ("v", self.num_kv_heads)):
                yield f"{prefix}self_attn.{name}_proj.weight", (heads * d, h)
                if self.attention_bias:
                    yield f"{prefix}self_attn.{name}_proj.bias", (heads * d,)
            if self.qk_norm:
                yield prefix + "self_attn.q_norm.weight", (d,)
                yield prefix + "self_attn.k_norm.weight", (d,)
            yield prefix + "self_attn.o_proj.weight", (h, self.num_heads * d)
            yield prefix + "post_attention_layernorm.weight", (h,)
            yield prefix + "mlp.gate_proj.weight", (self.intermediate_size, h)
            yield prefix + "mlp.up_proj.weight", (self.intermediate_size, h)
            yield prefix + "mlp.down_proj.weight", (h, self.intermediate_size)
        yield "model.norm.weight", (h,)
        if not self.tie_embeddings:
            yield "lm_head.weight", (self.vocab_size, h)

    def num_parameters(self) -> int:
        """Count the parameters; a tied output projection counts once."""
        return sum(math.prod(shape) for _, shape in self.parameter_shapes())

    def layer_parameters(self) -> int:
        """Count the parameters of one decoder layer."""
        return sum(math.prod(shape) for name, shape in self.parameter_shapes() if name.startswith("model.layers.0."))


def from_hf_config(raw: Mapping[str, Any], *, where: str) -> ModelConfig:
    """Read a Hugging Face `config.json` dictionary; `where` names it in errors.

    Raises `MismatchError` for a family or a feature that medsft does not implement, by name.
    """
    family = raw.get("model_type")
    if family not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise MismatchError(
            f"{where}: model family `{family}` is not supported", hint=f"Supported values of model_type: {known}."
        )
    if raw.get("hidden_act", "silu") not in ("silu", "swish"):
        raise MismatchError(f"{where}: activation `{raw['hidden_act']}` is not supported; only silu (SwiGLU) is.")
    if raw.get("mlp_bias"):
        raise MismatchError(f"{where}: mlp_bias is not supported.")
    if family in ("llama", "qwen3") and raw.get("attention_bias"):
        raise MismatchError(f"{where}: attention_bias on a {family} model (with a bias on o_proj) is not supported.")
    heads, hidden = int(raw["num_attention_heads"]), int(raw["hidden_size"])
    ends = _ids(raw.get("eos_token_id"))
    return ModelConfig(
        family=family,
        vocab_size=int(raw["vocab_size"]),
        hidden_size=hidden,
        intermediate_size=int(raw["intermediate_size"]),
        num_layers=int(raw["num_hidden_layers"]),
        num_heads=heads,
        num_kv_heads=int(raw.get("num_key_value_heads") or heads),
        head_dim=int(raw.get("head_dim") or (128 if family == "qwen3" else hidden // heads)),
        norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        rope_theta=_rope_theta(raw),
        rope_scaling=_rope_scaling(raw, where),
        max_position_embeddings=int(raw.get("max_position_embeddings", 2048)),
        tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
        attention_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        sliding_window=_sliding_window(raw, family, where),
        bos_token_id=raw.get("bos_token_id"),
        eos_token_id=ends[0] if ends else None,
        other_end_token_ids=tuple(ends[1:]),
        pad_token_id=raw.get("pad_token_id"),
    )


def read_hf_config(folder: Path) -> ModelConfig:
    """Read `folder/config.json`. Raises `MismatchError` when it is missing, damaged or of an unknown family."""
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MismatchError(f"{folder}: no config.json there.", hint="A Hugging Face model folder has one.") from None
    except ValueError as error:
        raise MismatchError(f"{path}: not valid JSON: {error}") from None
    try:
        return _with_generation_ends(from_hf_config(raw, where=str(path)), folder)
    except KeyError as error:
        raise MismatchError(f"{path}: the field {error} is missing.") from None


def _with_generation_ends(config: ModelConfig, folder: Path) -> ModelConfig:
    """Add the ids that `generation_config.json` names: it may have more than `config.json` (Llama 3's chat models)."""
    try:
        raw = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
        named = _ids(raw.get("eos_token_id"))
    except (OSError, ValueError, AttributeError):  # it is no part of the model: without it, nothing is missing
        return config
    if config.eos_token_id is None and named:
        config = replace(config, eos_token_id=named[0])
    others = dict.fromkeys((*config.other_end_token_ids, *named))
    return replace(config, other_end_token_ids=tuple(id_ for id_ in others if id_ != config.eos_token_id))


def to_hf_config(config: ModelConfig, *, dtype: str) -> dict[str, Any]:
    """Return the `config.json` that gives transformers the same model; `dtype` is torch's name (`bfloat16`)."""
    architecture = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}[config.family]
    raw: dict[str, Any] = {
        "architectures": [f"{architecture}ForCausalLM"],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": dict(config.rope_scaling) if config.rope_scaling else None,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": end_token_ids(config),
        "pad_token_id": config.pad_token_id,
        "use_cache": True,
        "dtype": dtype,
        "torch_dtype": dtype,  # the name of `dtype` before transformers 4.56
        "transformers_version": _READ_AS,
    }
    if config.family in ("mistral", "qwen2", "qwen3"):
        raw["sliding_window"] = config.sliding_window
    if config.family in ("qwen2", "qwen3"):
        raw["use_sliding_window"] = config.sliding_window is not None
        raw["max_window_layers"] = 0 if config.sliding_window else config.num_layers
    return raw


def end_token_ids(config: ModelConfig) -> int | list[int] | None:
    """Return where a generation ends as Hugging Face's files have it: one id, or a list."""
    ids = list(dict.fromkeys((config.eos_token_id, *config.other_end_token_ids)))
    return ids if len(ids) > 1 else config.eos_token_id  # type: ignore[return-value]


def _ids(value: Any) -> list[int]:
    """Return the ids of a field that has one, a list, or nothing."""
    values = value if isinstance(value, list) else [value]
    return [id_ for id_ in values if isinstance(id_, int) and not isinstance(id_, bool)]


def _rope_theta(raw: Mapping[str, Any]) -> float:
    """transformers 5 moved `rope_theta` into `rope_parameters`; both spellings are read."""
    parameters = raw.get("rope_parameters") or {}
    return float(raw.get("rope_theta") or parameters.get("rope_theta") or 10000.0)


def _rope_scaling(raw: Mapping[str, Any], where: str) -> Mapping[str, Any] | None:
    scaling = dict(raw.get("rope_scaling") or raw.get("rope_parameters") or {})
    scaling.pop("rope_theta", None)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if float(scaling.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0))) != 1.0:
        raise MismatchError(f"{where}: rotary positions on a part of each head are not supported.")
    if not scaling or kind == "default":
        return None
    if kind not in ("linear", "llama3"):
        raise MismatchError(f"{where}: rope scaling `{kind}` is not supported.", hint="Supported: linear and llama3, or none.")
    scaling.pop("type", None)
    return {"rope_type": kind, **{k: v for k, v in scaling.items() if k != "rope_type"}}


def _sliding_window(raw: Mapping[str, Any], family: str, where: str) -> int | None:
    """Return the window, filling in what transformers assumes when a field is absent.

    Mistral always uses its window. Qwen uses it with `use_sliding_window`, in the layers from `max_window_layers` on.
    """
    window = raw.get("sliding_window", 4096)
    if window is None or family == "llama":
        return None
    if family == "mistral":
        return int(window)
    if not raw.get("use_sliding_window"):
        return None
    full_layers = int(raw.get("max_window_layers", 28))
    if full_layers >= int(raw["num_hidden_layers"]):
        return None
    if full_layers > 0:
        raise MismatchError(f"{where}: a sliding window in some layers only (max_window_layers > 0) is not supported.")
    return int(window)
