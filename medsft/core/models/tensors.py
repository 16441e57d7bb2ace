"""Whether the tensors of a checkpoint are those of a model: all there, of the right shape, and none that would be left out.

A tensor that the model has no place for is not dropped in silence: where it changes what the checkpoint computes, the
checkpoint is another model than the one that would be trained, and is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from medsft.core.models.checked_json import plain, shown
from medsft.core.models.config import ModelConfig
from medsft.errors import MismatchError

EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
"""Names of the two tables of the vocabulary."""
_HARMLESS = re.compile(
    r"(.*\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached|original_inv_freq)"  # computed from config.json
    r"|(.*\.)?(attn|self_attn)\.(masked_bias|causal_mask)"  # a triangle of ones, as old versions saved it
    r"|.*\._extra_state"
)
_QUANTIZED = re.compile(
    r".*\.(qweight|qzeros|g_idx|scales|weight_scale|weight_scale_inv|weight_packed|weight_shape|input_scale|weight_zero_point"
    r"|absmax|quant_map|nested_absmax|nested_quant_map|SCB|weight_format|quant_state\..*)"
    r"|.*\.weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..*)"
)
_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_NAMED = 4


def check_complete(config: ModelConfig, found: Mapping[str, tuple[int, ...]], *, where: str) -> None:
    """Raise `MismatchError` unless `found` (name to shape) holds every weight of `config` in its full shape."""
    problems = []
    for name, shape in config.parameter_shapes():
        if name not in found:
            problems.append(f"{name} is missing")
        elif found[name] != shape:
            problems.append(f"{name} is {list(found[name])}, its config says {list(shape)}")
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise MismatchError(
            f"{where}: the weights do not fit the configuration: {'; '.join(problems[:3])}{more}.",
            hint=_other_names(found)
            or "The files are incomplete or belong to another model; copy or convert the checkpoint again.",
        )


def _other_names(found: Iterable[str]) -> str:
    """Say so where the weights are there under longer or shorter names than the model's."""
    layer = "layers.0.input_layernorm.weight"
    name = next((name for name in found if name.endswith(layer)), f"model.{layer}")
    prefix = name.removesuffix(layer)
    if prefix == "model.":
        return ""
    how = f"begin with {shown(prefix)}" if prefix else "lack `model.` in front"
    return f"Names in its files {how}: they were saved from another class. Load and save them as a causal language model."


def refuse_quantized_names(names: Iterable[str], *, where: str) -> None:
    """Raise `MismatchError` when the tensors are those of a quantized model, whatever its `config.json` says."""
    name = next((name for name in names if _QUANTIZED.fullmatch(name)), None)
    if name is not None:
        raise MismatchError(
            f"{where}: a quantized model: it holds {shown(name)}. Fine-tuning needs its weights in bf16, fp16 or fp32.",
            hint="Use the model that it was made from.",
        )


def check_left_over(
    config: ModelConfig,
    found: Mapping[str, tuple[int, ...]],
    *,
    where: str,
    is_zero: Callable[[str], bool] = lambda _: False,
) -> tuple[str, ...]:
    """Return a warning for each kind of tensors in `found` (name to shape) that the model does not use.

    `is_zero` says whether a tensor holds nothing but zeros: a bias of zeros changes nothing.
    Raises `MismatchError` where they change what the checkpoint computes: further layers, biases, norms. A second table of a
    model whose tables are tied is left to the caller, who can read it.
    """
    wanted = {name for name, _ in config.parameter_shapes()}
    left = [name for name in found if name not in wanted and not _is_harmless(name, found[name])]
    if config.tie_embeddings:
        left = [name for name in left if name != OUTPUT]
    layers = sorted({int(match[1]) for name in left if (match := _LAYER.match(name))})
    further = [layer for layer in layers if layer >= config.num_layers]
    if further:
        raise MismatchError(
            f"{where}: its files hold layer {further[-1]} (counted from 0), but config.json says num_hidden_layers = "
            f"{config.num_layers}; without the further layers it is another model.",
            hint="Correct num_hidden_layers, or take the files of one model.",
        )
    left = [name for name in left if not (name.endswith(".bias") and is_zero(name))]
    changing = [name for name in left if name.startswith("model.")]
    if changing:
        biases = any(name.endswith(".bias") for name in changing)
        raise MismatchError(
            f"{where}: a model of the family `{config.family}` has no place for {listed(changing)}; without them it would "
            "be another model.",
            hint="It was converted from another family, which has biases there: use the original, with its own model_type."
            if biases
            else "It belongs to another family, or holds an adapter that is not merged: use the original, or merge it first.",
        )
    return (f"{where}: not used: {listed(left)}.",) if left else ()


def listed(names: Iterable[str]) -> str:
    """Return the first of some names of tensors, and how many more there are."""
    all_names = sorted(names)
    more = f" and {len(all_names) - _NAMED} more" if len(all_names) > _NAMED else ""
    return ", ".join(plain(name) for name in all_names[:_NAMED]) + more


def _is_harmless(name: str, shape: tuple[int, ...]) -> bool:
    # GPT-like attention kept its mask as `attn.bias`: of more than one dimension, as no bias is.
    mask = name.endswith(("attn.bias", ".masked_bias")) and len(shape) != 1
    return mask or _HARMLESS.fullmatch(name) is not None
