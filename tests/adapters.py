"""Adapter folders as PEFT writes them, made without it; and what a model with one computes, written down a second time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tiny

from medsft.core.models.config import ModelConfig, read_hf_config

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "base_model.model."


def stored(model: ModelConfig, rank: int, targets: Sequence[str]) -> dict[str, tuple[str, Sequence[int]]]:
    """The type and shape of every tensor of a PEFT adapter of `model`, by PEFT's names."""
    tensors: dict[str, tuple[str, Sequence[int]]] = {}
    for name, shape in model.parameter_shapes():
        module = name.removesuffix(".weight")
        if module.split(".")[-1] in targets:
            tensors[f"{PREFIX}{module}.lora_A.weight"] = ("F32", (rank, shape[1]))
            tensors[f"{PREFIX}{module}.lora_B.weight"] = ("F32", (shape[0], rank))
    return tensors


def write_peft(
    folder: Path,
    base: Path,
    *,
    rank: int = 4,
    targets: Sequence[str] = ("q_proj", "v_proj"),
    rows: Mapping[str, Sequence[int]] | None = None,
    more: Mapping[str, tuple[str, Sequence[int]]] | None = None,
    without: str = "",
    seed: int | None = None,
    **changes: Any,
) -> Path:
    """An adapter of the model in `base`: zeros, or random numbers from a `seed`.

    `rows` are ids by `embed_tokens` and `lm_head`; `more` are tensors beside those of LoRA, `without` a part of names that are
    left out, `changes` other values of adapter_config.json.
    """
    model = read_hf_config(base)
    tensors = stored(model, rank, targets) | dict(more or {})
    for module, ids in (rows or {}).items():
        name = {"embed_tokens": "model.embed_tokens", "lm_head": "lm_head"}[module]
        tensors[f"{PREFIX}{name}.token_adapter.trainable_tokens_delta"] = ("F32", (len(ids), model.hidden_size))
    tensors = {name: tensor for name, tensor in tensors.items() if not without or without not in name}
    folder.mkdir(parents=True, exist_ok=True)
    if seed is None:
        tiny.write_tensors(folder / "adapter_model.safetensors", tensors)
    else:
        import torch
        from safetensors.torch import save_file

        torch.manual_seed(seed)
        values = {name: 0.1 * torch.randn(*shape) for name, (_, shape) in tensors.items()}
        save_file(values, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "base_model_name_or_path": str(base),
        "bias": "none",
        "lora_alpha": 8,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": list(targets),
        "task_type": "CAUSAL_LM",
        **({"trainable_token_indices": {name: list(ids) for name, ids in rows.items()}} if rows else {}),
    }
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    return folder


def logits_with(folder: Path, model: Any, tokens: Tensor) -> Tensor:
    """What a transformers model computes with an adapter beside its weights: x W^T + scaling (x A^T) B^T, and rows replaced.

    The model must have the rows that the adapter replaces.
    """
    import torch
    from safetensors.torch import load_file

    config = json.loads((folder / "adapter_config.json").read_text())
    values = {name.removeprefix(PREFIX): value for name, value in load_file(folder / "adapter_model.safetensors").items()}
    scaling = config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"])
    hooks = []

    def adapt(first: Tensor, second: Tensor) -> Any:
        return lambda module, inputs, output: output + scaling * ((inputs[0] @ first.T) @ second.T)

    for name in values:
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            hook = adapt(values[name], values[f"{module}.lora_B.weight"])
            hooks.append(model.get_submodule(module).register_forward_hook(hook))
    with torch.no_grad():
        for module, ids in config.get("trainable_token_indices", {}).items():
            name = {"embed_tokens": "model.embed_tokens", "lm_head": "lm_head"}[module]
            model.get_submodule(name).weight[ids] = values[f"{name}.token_adapter.trainable_tokens_delta"]
        logits: Tensor = model(input_ids=tokens[None]).logits[0]
    for handle in hooks:
        handle.remove()
    return logits
