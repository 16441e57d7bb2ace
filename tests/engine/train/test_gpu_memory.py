"""The memory that a plan says of a GPU is the live memory of a step, on fake CUDA tensors, within a tenth.

The models have the shapes of known ones and fewer layers, which all are alike.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
from fake_cuda import measure_step

from medsft.core.config.lora import LoraSpec
from medsft.core.models.config import ModelConfig
from medsft.core.planning.adapter import AdapterPlan
from medsft.core.planning.layout import Layout
from medsft.core.planning.memory import Workload, estimate_memory

SMOLLM2 = replace(tiny.SMOLLM2, num_layers=6)
LLAMA_1B = replace(
    SMOLLM2, vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_layers=4, num_heads=32, num_kv_heads=8
)
LLAMA_8B = replace(LLAMA_1B, hidden_size=4096, intermediate_size=14336, num_layers=3, head_dim=128, tie_embeddings=False)
LORA = LoraSpec(
    rank=16,
    alpha=32.0,
    targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    rslora=False,
)
CASES: dict[str, tuple[ModelConfig, int, int, dict[str, Any]]] = {
    "135M": (SMOLLM2, 8, 2, {}),
    "1B, one micro-batch": (LLAMA_1B, 8, 1, {}),
    "1B, selective": (LLAMA_1B, 8, 2, {"recompute": "selective"}),
    "1B, full": (LLAMA_1B, 8, 2, {"recompute": "full"}),
    "1B, fp32": (LLAMA_1B, 2, 2, {"precision": "fp32"}),
    "8B": (LLAMA_8B, 1, 2, {}),
    "8B, LoRA": (LLAMA_8B, 4, 2, {"adapter": LORA}),
    "8B, LoRA, full": (LLAMA_8B, 4, 2, {"adapter": LORA, "recompute": "full"}),
    "8B, QLoRA": (replace(LLAMA_8B, num_layers=1), 2, 1, {"adapter": LORA, "base_precision": "nf4"}),
}
"""Models, documents in a micro-batch, micro-batches, and the rest."""
LENGTH = 2048


@pytest.mark.parametrize("name", list(CASES))
def test_live_memory(name: str) -> None:
    model, documents, micro_batches, options = CASES[name]
    precision, base = options.get("precision", "bf16"), options.get("base_precision")
    lora = options.get("adapter")
    work = Workload(
        stream_tokens=documents * LENGTH,
        num_micro_batches=micro_batches,
        bf16=precision == "bf16",
        recompute=options.get("recompute", "none"),
        device_kind="cuda",
    )
    adapter = AdapterPlan(lora=lora, base_precision=base or precision, rows=0) if lora else None
    planned = estimate_memory(model, Layout(), work, adapter=adapter)
    measured = measure_step(model, [LENGTH] * documents, micro_batches, supervised=1.0, **options).peak_bytes
    assert planned.total - planned.process == pytest.approx(measured, rel=0.1)
