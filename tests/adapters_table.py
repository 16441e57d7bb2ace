"""The table of docs/adapters.md: what two models need, by `config.json`. `python tests/adapters_table.py` writes it anew."""

from __future__ import annotations

from typing import Any

import numpy as np
from kept import ROOT

from medsft.core.config.lora import FULL, FULL_8BIT, LORA, QLORA
from medsft.core.config.run_config import RunConfig
from medsft.core.devices import Devices
from medsft.core.models.config import ModelConfig, from_hf_config
from medsft.core.planning.alternatives import adapter_of, checkpoint_bytes
from medsft.core.planning.auto_layout import LayoutChoice, LayoutInputs, choose
from medsft.core.units import short_count

PAGE = ROOT / "docs" / "adapters.md"
BEGIN, END = "<!-- needs: made by tests/adapters_table.py -->\n", "<!-- end of needs -->\n"
LLAMA_3_1_8B: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
LLAMA_2_70B: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS = {"Llama 3.1 8B": LLAMA_3_1_8B, "Llama 2 70B": LLAMA_2_70B}
DEVICES = {"1 x 24 GB": (1, 24), "1 x 80 GB": (1, 80), "8 x 80 GB": (8, 80)}
"""Number of GPUs, and 1e9 bytes of each."""
KINDS: dict[str, dict[str, Any]] = {
    FULL: {},
    FULL_8BIT: {"optimizer": "adamw8bit"},
    LORA: {"adapter": "lora"},
    QLORA: {"adapter": "lora", "base_precision": "nf4"},
}
NEW_TOKENS = 2
"""That the template `meditron` adds to these models."""
DOCUMENT = 2048
"""Tokens of every document: those of the default of --seq."""


def planned(
    raw: dict[str, Any], kind: str, count: int, gigabytes: int, recompute: str = "none"
) -> tuple[ModelConfig, LayoutInputs, LayoutChoice]:
    """Return what a plan chooses for documents of one length, one at a time."""
    config = RunConfig(run_name="r", micro_batch=1, recompute=recompute, **KINDS[kind])
    model = from_hf_config(raw, where="config.json")
    model = model.with_vocab(model.vocab_size + NEW_TOKENS)
    inputs = LayoutInputs(
        config=config,
        global_batch=config.global_batch,
        model=model,
        tp=None,
        pp=None,
        devices=Devices("cuda", count, gigabytes * 10**9, "a GPU", bf16=True),
        precision="bf16",
        batches=(np.full(config.global_batch, DOCUMENT),),
        longest=DOCUMENT,
        adapter=adapter_of(config, precision="bf16", rows=NEW_TOKENS),
    )
    return model, inputs, choose(inputs)


def needs_table() -> str:
    """Return memory of the rank that needs most where it fits, the layout, and what is trained and saved.

    Where the default does not fit, it is that of `--recompute full`.
    """
    lines = [f"| | | {' | '.join(KINDS)} |", "|---" * (2 + len(KINDS)) + "|"]
    for name, raw in MODELS.items():
        for device, (count, gigabytes) in DEVICES.items():
            cells = [_cell(raw, kind, count, gigabytes) for kind in KINDS]
            lines.append(f"| {name} | {device} | {' | '.join(cells)} |")
        lines.append(f"| {name} | trained, a checkpoint | {' | '.join(_saved(raw, kind) for kind in KINDS)} |")
    return "\n".join(lines) + "\n"


def _cell(raw: dict[str, Any], kind: str, count: int, gigabytes: int) -> str:
    for recompute in ("none", "full"):
        choice = planned(raw, kind, count, gigabytes, recompute)[2]
        need, layout = choice.memory.total / 1e9, choice.layout
        if need <= gigabytes:
            break
    text = f"{need:.0f} GB" if need >= 10 else f"{need:.1f} GB"
    if need > gigabytes:
        return f"no ({text})"
    sizes = [f"{name} {size}" for name, size in (("tp", layout.tp), ("pp", layout.pp), ("dp", layout.dp)) if size > 1]
    notes = [" ".join(sizes), "recompute" if recompute == "full" else ""]
    noted = ", ".join(filter(None, notes))
    return f"**{text}**{f' ({noted})' if noted else ''}"


def _saved(raw: dict[str, Any], kind: str) -> str:
    model, inputs, _ = planned(raw, kind, 8, 80)
    trained = model.num_parameters() if inputs.adapter is None else inputs.adapter.trained(model)
    size = checkpoint_bytes(model, inputs.adapter, optimizer=inputs.config.optimizer, precision="bf16")
    return f"{short_count(trained)}, {size / 1e9:.3g} GB"


def split(page: str) -> tuple[str, str, str]:
    """Return what stands before, between and after the marks."""
    before, rest = page.split(BEGIN)
    inside, after = rest.split(END)
    return before + BEGIN, inside, END + after


if __name__ == "__main__":
    head, _, tail = split(PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(f"{head}\n{needs_table()}\n{tail}", encoding="utf-8")
