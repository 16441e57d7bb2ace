"""What kind of model a `config.json` describes, so that one which cannot be fine-tuned here is refused by its name."""

from __future__ import annotations

from medsft.core.models.checked_json import Values, plain, shown
from medsft.errors import MismatchError

FAMILIES = {
    "llama": "Llama 1/2/3, CodeLlama, SmolLM and other models with model_type `llama`",
    "mistral": "Mistral",
    "qwen2": "Qwen 2 and 2.5",
    "qwen3": "Qwen 3 (dense)",
}
_HEADS = {
    "ForSequenceClassification": "a classifier",
    "ForTokenClassification": "a classifier of tokens",
    "ForQuestionAnswering": "a model that marks answers in a text",
    "ForMaskedLM": "an encoder, which completes no text",
    "ForConditionalGeneration": "a model with an encoder",
    "RewardModel": "a reward model",
    "Model": "a model without its output layer",
}
"""Ends of names in `architectures`; the first that fits is taken."""
_ENCODERS = (
    "bert",
    "roberta",
    "xlm-roberta",
    "distilbert",
    "electra",
    "deberta",
    "deberta-v2",
    "albert",
    "modernbert",
    "camembert",
)
_PAIRS = ("t5", "mt5", "umt5", "bart", "mbart", "pegasus", "marian", "m2m_100", "encoder-decoder", "whisper")


def check_kind(values: Values) -> str:
    """Return the family (`model_type`) of a causal language model whose weights are plain numbers.

    Raises `MismatchError` for any other model, saying what it is: of another family, quantized, or with another head.
    """
    family = values.text("model_type")
    if family not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        what = _other_kind(values, family)
        raise MismatchError(
            f"{values.where}: model family `{plain(family)}` is not supported{what}.",
            hint=f"Supported values of model_type: {known}.",
        )
    _refuse_quantized(values)
    _refuse_other_heads(values)
    return family


def _other_kind(values: Values, family: str) -> str:
    if values.raw.get("vision_config") or values.raw.get("audio_config"):
        return ": it reads more than text"
    if values.raw.get("is_encoder_decoder") or family in _PAIRS:
        return ": it is an encoder with a decoder"
    if family in _ENCODERS:
        return ": it is an encoder, which completes no text"
    if any(values.raw.get(name) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        return ": it is a mixture of experts"
    return ""


def _refuse_quantized(values: Values) -> None:
    for name in ("quantization_config", "compression_config"):
        config = values.inner(name)
        if not config.raw:
            continue
        method = config.raw.get("quant_method")
        if not isinstance(method, str):
            method = "bitsandbytes" if any(key.startswith(("load_in_", "bnb_")) for key in config.raw) else "method not named"
        raise MismatchError(
            f"{values.where}: a quantized model ({name}: {plain(method)}). Fine-tuning needs bf16, fp16 or fp32.",
            hint="Use the model that it was made from. If its weights are plain again, as after merging an adapter, take "
            f"{name} out of the file.",
        )


def _refuse_other_heads(values: Values) -> None:
    names = values.items("architectures")
    for name in names:
        if not isinstance(name, str):
            raise MismatchError(f"{values.where}: `architectures` holds {shown(name)}; it must hold names.")
    if not names or any(name.endswith("ForCausalLM") for name in names):
        return
    what = next((what for end, what in _HEADS.items() if names[0].endswith(end)), "not a causal language model")
    raise MismatchError(
        f"{values.where}: `{plain(names[0])}` is {what}. Only causal language models (...ForCausalLM) can be fine-tuned.",
        hint="Use the language model that it was made from.",
    )
