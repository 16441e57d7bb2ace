"""What a user would write instead: transformers' own model in a plain loop, with Liger's kernels, and with compiled layers.

Weights in fp32 under bf16 autocast, torch's attention, fused AdamW, rows of one length, so that nothing is padded. For an
adapter PEFT over a base in bf16.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bench import flops
from bench.gpu import shapes
from bench.gpu.part import Findings, Setup
from bench.gpu.trained import peak_rate

_SUPERVISED = 0.25
"""Share of the tokens that have a loss."""
_WARM, _MEASURED = 3, 4
_TINY_LENGTH, _TINY_DOCUMENTS = 48, 4
_LORA_RANK, _LORA_ALPHA = 16, 32


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """A peer to be measured, if there is time for it."""

    model: str
    shape: Mapping[str, Any]
    seconds: int
    liger: bool = False
    compiled: bool = False
    adapter: bool = False

    @property
    def name(self) -> str:
        """Return what the program is made of."""
        with_ = [name for name, on in (("PEFT", self.adapter), ("Liger", self.liger), ("compiled layers", self.compiled)) if on]
        return " + ".join(["transformers", *with_])


_SMOL, _1B, _8B = "SmolLM2-135M, 8 x 2,048", "Llama 3.2 1B, 8 x 2,048", "Llama 3 8B LoRA, 8 x 2,048"
_CASES = (
    # Liger changes transformers' classes for the rest of the process: what goes without it comes first.
    _Wanted(model=_SMOL, shape=shapes.SMOLLM2_135M, seconds=8),
    _Wanted(model=_1B, shape=shapes.LLAMA_1B, seconds=10),
    _Wanted(model=_SMOL, shape=shapes.SMOLLM2_135M, liger=True, seconds=10),
    _Wanted(model=_1B, shape=shapes.LLAMA_1B, liger=True, seconds=10),
    _Wanted(model=_SMOL, shape=shapes.SMOLLM2_135M, liger=True, compiled=True, seconds=30),
    _Wanted(model=_8B, shape=shapes.LLAMA_8B, liger=True, adapter=True, seconds=30),
    _Wanted(model=_1B, shape=shapes.LLAMA_1B, liger=True, compiled=True, seconds=30),
)


def measure(setup: Setup, found: Findings) -> None:
    """See the module."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results: list[dict[str, Any]] = []
    for case in _CASES:
        if device.type == "cpu" and (case.liger or case.compiled):
            found.note(f"{case.model}, {case.name}: not run, it needs a GPU.")
            continue
        if setup.left < case.seconds and not setup.tiny:
            found.note(f"{case.model}, {case.name}: not run, no time was left.")
            continue
        with found.attempt(f"{case.model}, {case.name}", right=False):
            results.append({"model": case.model, "program": case.name, **_largest(case, device, tiny=setup.tiny)})
            found.figure("cases", results)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _largest(case: _Wanted, device: torch.device, *, tiny: bool) -> dict[str, Any]:
    """Measure with the largest micro-batch for which the memory suffices. Raises torch.OutOfMemoryError when none fits."""
    documents = _TINY_DOCUMENTS if tiny else 8
    micro_batch = documents
    while True:
        try:
            return _measure(case, device, documents=documents, micro_batch=micro_batch, tiny=tiny)
        except torch.OutOfMemoryError:
            if micro_batch == 1:
                raise
        micro_batch //= 2
        gc.collect()
        torch.cuda.empty_cache()


def _measure(case: _Wanted, device: torch.device, *, documents: int, micro_batch: int, tiny: bool) -> dict[str, Any]:
    """Return the median of some iterations of `documents` rows."""
    shape = shapes.sized(case.shape, tiny=tiny)
    config, length = shapes.config_of(shape), _TINY_LENGTH if tiny else 2048
    began = time.perf_counter()
    model = _model(case, shape, device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    ids = torch.randint(0, config.vocab_size, (micro_batch, length), device=device)
    labels = ids.masked_fill(torch.rand(ids.shape, device=device) > _SUPERVISED, -100)
    count = documents // micro_batch

    def iteration() -> None:
        for _ in range(count):
            with torch.autocast(device.type, torch.bfloat16):
                loss = model(input_ids=ids, labels=labels, use_cache=False).loss / count
            loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    warm, measured = (1, 2) if tiny else (_WARM, _MEASURED)
    seconds = [_seconds(iteration, device) for _ in range(warm + measured)]
    median, tokens = statistics.median(seconds[warm:]), documents * length
    rate = flops.per_token(config, [length], [_SUPERVISED * length], frozen=case.adapter) * tokens / median
    peak = peak_rate()
    return {
        "micro_batch": micro_batch,
        "ms": round(1e3 * median, 2),
        "tokens_per_s": round(tokens / median, 1),
        "mfu": round(rate / peak, 4) if peak else None,
        "peak_gb": round(torch.cuda.max_memory_allocated(device) / 1e9, 3) if device.type == "cuda" else None,
        "until_it_runs_s": round(time.perf_counter() - began - sum(seconds[warm:]), 1),
    }


def _seconds(call: Callable[[], None], device: torch.device) -> float:
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _model(case: _Wanted, shape: Mapping[str, Any], device: torch.device) -> torch.nn.Module:
    """Return transformers' model with random weights on the device, changed as the case says."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if case.liger:
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama()
    config = AutoConfig.for_model(**shape)
    with device:
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16 if case.adapter else torch.float32, attn_implementation="sdpa"
        )
    if case.adapter:
        from peft import LoraConfig, get_peft_model

        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        lora = LoraConfig(r=_LORA_RANK, lora_alpha=_LORA_ALPHA, target_modules=targets, task_type="CAUSAL_LM")
        model = get_peft_model(model, lora)
    if case.compiled:
        for layer in model.model.layers:  # one by one: they share the code, which is then compiled once
            layer.compile()
    return model.train()
