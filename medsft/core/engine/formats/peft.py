"""Folders with a low-rank adapter as PEFT reads and writes them.

What is written is what PEFT 0.15 and later load (`peft.LoraConfig`; fields that they have alone are left out, for releases of
before refuse a field that they do not know) and vLLM, whose reader takes `target_modules` as a list of the last parts of names.
Tensors are in fp32, as they were trained. Rows of tokens that the base did not have are PEFT's `trainable_token_indices`: whole
rows that take the place of the table's own when the adapter is loaded, in an untied output table under `lm_head`, in a tied one
through the embedding. Saved whole (`modules_to_save`), two tables of Llama 3 would be 4 GB, and a table that has more rows than
the base's is refused by transformers all the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from medsft.core.config.lora import TRAINED_ROWS, LoraSpec
from medsft.core.engine.formats.adapters import StoredAdapter
from medsft.core.engine.formats.safetensors_writer import write_header, write_tensor
from medsft.core.models.adapter_folder import BASE_KEY, BASE_PRECISION_KEY, CONFIG_NAME, PREFIX, ROWS_SUFFIX, WEIGHTS_NAME
from medsft.core.models.config import ModelConfig


def fill_peft(
    folder: Path, adapter: StoredAdapter, model: ModelConfig, *, base: str, fingerprint: str = "", base_precision: str = ""
) -> None:
    """Write an adapter of `model` into a folder that is there; the caller makes it durable. One tensor at a time is in memory.

    `base` is where the base model is found; its `fingerprint`, and the format in which the base was kept while training, go
    into the file for `models.adapter_folder`, which reads both again.
    """
    stored = {f"{PREFIX}{name}": (name, shape) for name, shape in adapter.lora.shapes(model)}
    for table, ids in adapter.rows.items():
        key = f"{PREFIX}{table.removesuffix('.weight')}{ROWS_SUFFIX}"
        stored[key] = (TRAINED_ROWS[table], (len(ids), model.hidden_size))
    known = {BASE_KEY: fingerprint, BASE_PRECISION_KEY: base_precision}
    with (folder / WEIGHTS_NAME).open("wb", buffering=0) as file:
        shapes = {key: shape for key, (_, shape) in stored.items()}
        starts = write_header(file, shapes, torch.float32, {name: text for name, text in known.items() if text})
        for key, (name, _) in stored.items():
            write_tensor(file.fileno(), starts[key], adapter.read(name).float())
    config = peft_config(adapter.lora, adapter.rows, base=base)
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def peft_config(lora: LoraSpec, rows: Mapping[str, Sequence[int]], *, base: str) -> dict[str, Any]:
    """Return the `adapter_config.json`; `rows` are the ids of trained rows by the name of their table."""
    config: dict[str, Any] = {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha,  # a whole number by its type in PEFT
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": lora.rank,
        "rank_pattern": {},
        "revision": None,
        "target_modules": list(lora.targets),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": lora.rslora,
    }
    if rows:
        modules = {table.removesuffix(".weight").rpartition(".")[2]: list(ids) for table, ids in rows.items()}
        config["trainable_token_indices"] = modules
    return config
