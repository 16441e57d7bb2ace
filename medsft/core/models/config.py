"""The shape of a Llama-family model, as its `config.json` says it. No torch: plans are made from this alone.

Weight names everywhere in medsft are Hugging Face's (``model.layers.0.self_attn.q_proj.weight``); other formats
translate at their border. Linear weights are ``[out_features, in_features]``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medsft.core.models.checked_json import Values, plain, read_object, shown
from medsft.core.models.kind import check_kind
from medsft.errors import MismatchError

_LARGEST = {
    "vocab_size": 4_000_000,
    "hidden_size": 131_072,
    "intermediate_size": 1_048_576,
    "num_layers": 2_000,
    "heads": 4_096,
    "head_dim": 4_096,
    "positions": 1_000_000_000,
}
"""Far beyond any model of these families (Llama 3.1 405B: 126 layers of 16,384), so that an odd number builds nothing."""
_POSITIONS = {"llama": 2048, "mistral": 131_072, "qwen2": 32_768, "qwen3": 32_768}
"""What transformers supposes for a family where `max_position_embeddings` is not said."""
_SPOKEN = {
    "vocab_size": "tokens in the vocabulary",
    "hidden_size": "hidden features",
    "intermediate_size": "feed-forward features",
    "num_layers": "layers",
    "heads": "heads",
    "head_dim": "features in a head",
    "positions": "positions",
}
_READ_AS = "5.0.0"
"""The release of transformers from which on a tokenizer.json is taken as it is. Where `config.json` names none, or an older
one, 4.57 says of large vocabularies that they split words wrongly, and advises a flag that changes the ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Sizes and constants of a decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

    family: str
    """Hugging Face `model_type`: one of `model_kind.FAMILIES`."""
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

    @property
    def context(self) -> int:
        """Positions that the model is made for. A linear scaling stretches them; Llama 3.1's number is after its scaling.

        A sliding window bounds what a token sees, not how long a document may be.
        """
        if self.rope_scaling is None or self.rope_scaling["rope_type"] != "linear":
            return self.max_position_embeddings
        return int(self.max_position_embeddings * self.rope_scaling["factor"])

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

    Raises `MismatchError` for a family, a kind of model or a feature that medsft does not implement, by name, and for a value
    that is missing, of a wrong type or out of every reasonable range: nothing is built from sizes that were not looked at.
    """
    values = Values(raw, where)
    family = check_kind(values)
    _refuse_features(values, family)
    heads = values.whole("num_attention_heads", high=_LARGEST["heads"])
    hidden = values.whole("hidden_size", high=_LARGEST["hidden_size"])
    layers = values.whole("num_hidden_layers", high=_LARGEST["num_layers"])
    ends = _token_ids(values, "eos_token_id")
    config = ModelConfig(
        family=family,
        vocab_size=values.whole("vocab_size", high=_LARGEST["vocab_size"]),
        hidden_size=hidden,
        intermediate_size=values.whole("intermediate_size", high=_LARGEST["intermediate_size"]),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=values.whole("num_key_value_heads", default=None, high=_LARGEST["heads"]) or heads,
        head_dim=values.whole("head_dim", default=None, high=_LARGEST["head_dim"])
        or (128 if family == "qwen3" else max(1, hidden // heads)),
        norm_eps=values.number("rms_norm_eps", default=None, high=1.0) or 1e-6,
        rope_theta=_rope_theta(values),
        rope_scaling=_rope_scaling(values),
        max_position_embeddings=values.whole("max_position_embeddings", default=_POSITIONS[family], high=_LARGEST["positions"]),
        tie_embeddings=values.flag("tie_word_embeddings"),
        attention_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        sliding_window=_sliding_window(values, family, layers),
        bos_token_id=next(iter(_token_ids(values, "bos_token_id")), None),
        eos_token_id=ends[0] if ends else None,
        other_end_token_ids=tuple(ends[1:]),
        pad_token_id=next(iter(_token_ids(values, "pad_token_id")), None),
    )
    check_sizes(config, where)
    return config


def check_sizes(config: ModelConfig, where: str) -> None:
    """Raise `MismatchError` for sizes that are out of every reasonable range, or that no model can have together."""
    for name, value in (
        ("vocab_size", config.vocab_size),
        ("hidden_size", config.hidden_size),
        ("intermediate_size", config.intermediate_size),
        ("num_layers", config.num_layers),
        ("heads", config.num_heads),
        ("heads", config.num_kv_heads),
        ("head_dim", config.head_dim),
        ("positions", config.max_position_embeddings),
    ):
        if not 1 <= value <= _LARGEST[name]:
            raise MismatchError(f"{where}: {value:,} {_SPOKEN[name]}; medsft takes 1 to {_LARGEST[name]:,}.")
    if config.num_heads % config.num_kv_heads:
        raise MismatchError(f"{where}: {config.num_heads} heads cannot share {config.num_kv_heads} key/value heads evenly.")
    if config.head_dim % 2:
        raise MismatchError(f"{where}: heads of {config.head_dim} features; rotary positions need an even number.")


def read_hf_config(folder: Path) -> ModelConfig:
    """Read `folder/config.json`. Raises `MismatchError` when it is missing, damaged or of another kind of model."""
    path = folder / "config.json"
    try:
        raw = read_object(path)
    except FileNotFoundError:
        raise MismatchError(f"{folder}: no config.json there.", hint="A Hugging Face model folder has one.") from None
    return _with_generation_ends(from_hf_config(raw, where=str(path)), folder)


def _with_generation_ends(config: ModelConfig, folder: Path) -> ModelConfig:
    """Add the ids that `generation_config.json` names: it may have more than `config.json` (Llama 3's chat models)."""
    named = named_end_tokens(folder)
    if not named:
        return config
    if config.eos_token_id is None:
        config = replace(config, eos_token_id=named[0])
    others = dict.fromkeys((*config.other_end_token_ids, *named))
    return replace(config, other_end_token_ids=tuple(id_ for id_ in others if id_ != config.eos_token_id))


def named_end_tokens(folder: Path) -> tuple[int, ...]:
    """Return the ids at which a generation ends by the `generation_config.json` of a folder; none where it has no such file."""
    path = folder / "generation_config.json"
    try:
        return tuple(_token_ids(Values(read_object(path), str(path)), "eos_token_id"))
    except FileNotFoundError:  # many models have none
        return ()


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


def _refuse_features(values: Values, family: str) -> None:
    """Raise `MismatchError` for what changes the model's result and is not implemented."""
    activation = values.text("hidden_act", default="silu")
    if activation not in ("silu", "swish"):
        raise MismatchError(f"{values.where}: activation `{plain(activation)}` is not supported; only silu (SwiGLU) is.")
    if values.flag("mlp_bias"):
        raise MismatchError(f"{values.where}: mlp_bias is not supported.")
    if family in ("llama", "qwen3") and values.flag("attention_bias"):
        raise MismatchError(
            f"{values.where}: attention_bias on a {family} model (with a bias on o_proj) is not supported.",
            hint="If it was converted from a Qwen model, use the original of that with its own model_type.",
        )


def _token_ids(values: Values, name: str) -> list[int]:
    """Return the ids of a field that has one, a list, or nothing; a negative one means none, as in Llama 1."""
    value = values.raw.get(name)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for id_ in ids:
        if isinstance(id_, bool) or not isinstance(id_, int) or id_ >= _LARGEST["vocab_size"]:
            raise MismatchError(f"{values.where}: `{name}` is {shown(value)}; it must be a token's id, or a list of them.")
    return [id_ for id_ in ids if id_ >= 0]


def _rope_theta(values: Values) -> float:
    """transformers 5 moved `rope_theta` into `rope_parameters`; both spellings are read."""
    inner = values.inner("rope_parameters").number("rope_theta", default=None)
    return values.number("rope_theta", default=None) or inner or 10000.0


def _rope_scaling(values: Values) -> Mapping[str, Any] | None:
    scaling = values.inner("rope_scaling")
    if not scaling.raw:
        scaling = values.inner("rope_parameters")
    if any(isinstance(value, Mapping) for value in scaling.raw.values()):
        raise MismatchError(f"{values.where}: rotary positions that differ between layers are not supported.")
    kind = scaling.text("rope_type", default=None) or scaling.text("type", default="default")
    for place in (scaling, values):
        if place.number("partial_rotary_factor", default=1.0) != 1.0:
            raise MismatchError(f"{values.where}: rotary positions on a part of each head are not supported.")
    if kind == "default":
        return None
    if kind not in ("linear", "llama3"):
        raise MismatchError(
            f"{values.where}: rope scaling `{plain(kind)}` is not supported.",
            hint="Supported: linear and llama3, or none.",
        )
    read = {"rope_type": kind, "factor": scaling.number("factor")}
    if kind == "llama3":
        read |= {name: scaling.number(name) for name in ("low_freq_factor", "high_freq_factor")}
        if read["low_freq_factor"] == read["high_freq_factor"]:
            raise MismatchError(f"{scaling.where}: low_freq_factor and high_freq_factor must differ.")
        length = scaling.whole("original_max_position_embeddings", default=None, high=_LARGEST["positions"])
        read |= {} if length is None else {"original_max_position_embeddings": length}
    return read


def _sliding_window(values: Values, family: str, layers: int) -> int | None:
    """Return the window, filling in what transformers assumes when a field is absent.

    Mistral always uses its window. Qwen uses it with `use_sliding_window`, in the layers that `layer_types` names, or else in
    those from `max_window_layers` on.
    """
    window = values.whole("sliding_window", default=None, high=_LARGEST["positions"])
    if "sliding_window" not in values.raw:
        window = 4096
    if window is None or family == "llama":
        return None
    if family == "mistral":
        return int(window)
    if not values.flag("use_sliding_window"):
        return None
    full_layers = values.whole("max_window_layers", default=28, low=0, high=_LARGEST["num_layers"])
    kinds = values.items("layer_types")
    windowed = sum(kind == "sliding_attention" for kind in kinds) if kinds else max(0, layers - full_layers)
    if 0 < windowed < layers:
        raise MismatchError(
            f"{values.where}: a sliding window in some layers only (max_window_layers > 0, or layer_types) is not supported."
        )
    return int(window) if windowed else None
