"""How fast a step is at the sizes of published models, its memory beside the plan's, and what the device waits for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from bench.gpu import shapes
from bench.gpu.part import Findings, Setup
from bench.gpu.trained import Case, plan_case, train_here, train_ranks
from medsft.core.config.run_config import RunConfig
from medsft.core.devices import find_devices

_TINY_LENGTH, _TINY_DOCUMENTS = 48, 4
_PLAIN = {"MEDSFT_REFERENCE_KERNELS": "1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """A training to be measured, if there is time and memory for it."""

    name: str
    shape: Mapping[str, Any]
    documents: int
    """In one iteration; the planner chooses how many in a micro-batch."""
    length: int
    seconds: int
    """That it takes on an H100, about, with loading."""
    options: dict[str, Any] = field(default_factory=dict)
    layers: int | None = None
    """Of the model, where not all."""
    plain: bool = False
    """Without any kernel but torch's separate operations, in a process of its own."""


_SLICE = {"micro_batch": 4, "recompute": "none"}
_CASES = (
    _Wanted(name="SmolLM2-135M, 4 x 512", shape=shapes.SMOLLM2_135M, documents=4, length=512, seconds=8),
    _Wanted(name="SmolLM2-135M, 8 x 2,048", shape=shapes.SMOLLM2_135M, documents=8, length=2048, seconds=8),
    _Wanted(name="Llama 3.2 1B, 8 x 2,048", shape=shapes.LLAMA_1B, documents=8, length=2048, seconds=12),
    _Wanted(
        name="Llama 3 8B LoRA, 8 x 2,048",
        shape=shapes.LLAMA_8B,
        documents=8,
        length=2048,
        seconds=30,
        options={"adapter": "lora"},
    ),
    _Wanted(
        name="Llama 3 8B adamw8bit, 8 x 2,048",
        shape=shapes.LLAMA_8B,
        documents=8,
        length=2048,
        seconds=60,  # torch.compile makes kernels of the update
        options={"optimizer": "adamw8bit"},
    ),
    _Wanted(
        name="SmolLM2-135M, 8 x 2,048, torch's operations",
        shape=shapes.SMOLLM2_135M,
        documents=8,
        length=2048,
        seconds=20,
        plain=True,
    ),
    _Wanted(
        name="Llama 3 8B QLoRA, 8 x 2,048",
        shape=shapes.LLAMA_8B,
        documents=8,
        length=2048,
        seconds=45,
        options={"adapter": "lora", "base_precision": "nf4"},
    ),
    _Wanted(
        name="4 layers of 8B, 4 x 2,048", shape=shapes.LLAMA_8B, documents=4, length=2048, seconds=15, layers=4, options=_SLICE
    ),
    _Wanted(
        name="8 layers of 8B, 4 x 2,048", shape=shapes.LLAMA_8B, documents=4, length=2048, seconds=20, layers=8, options=_SLICE
    ),
)
"""In the order of their worth. The slices tell of all of 8B with fp32 masters, which no card holds: what a layer costs."""
_SLICES = "4 layers of 8B, 4 x 2,048", "8 layers of 8B, 4 x 2,048"


def measure(setup: Setup, found: Findings) -> None:
    """See the module."""
    results: dict[str, dict[str, Any]] = {}
    known = {field.name for field in fields(RunConfig)}
    for case in _CASES:
        if not case.options.keys() <= known:
            found.note(f"{case.name}: this version has no --{', --'.join(case.options.keys() - known)}.")
            continue
        if setup.left < (5 if setup.tiny else case.seconds):
            found.note(f"{case.name}: not run, no time was left.")
            continue
        with found.attempt(case.name, right=True):
            if result := _measure(case, setup, found):
                results[case.name] = result
                found.figure("cases", results)
    if all(name in results for name in _SLICES) and not setup.tiny:
        found.figure("whole_8b", _whole(*(results[name] for name in _SLICES)))


def _measure(case: _Wanted, setup: Setup, found: Findings) -> dict[str, Any] | None:
    """Return what was measured; None, with a note, where the plan says that it does not fit."""
    devices = find_devices()
    changes = {} if case.layers is None else {"num_hidden_layers": case.layers}
    shape = shapes.sized(case.shape, tiny=setup.tiny, **changes)
    planned = Case(
        name=_as_name(case.name),
        base=_base(setup.work, shape),
        documents=_TINY_DOCUMENTS if setup.tiny else case.documents,
        length=_TINY_LENGTH if setup.tiny else case.length,
        options={"precision": "bf16" if devices.bf16 else "fp32", "nproc_per_node": 1, **case.options},
    )
    warm, measured = (1, 2) if setup.tiny else (2, 4)
    plan = plan_case(planned, setup.work, iterations=warm + measured + 1)
    needed, there = plan.estimates.memory.total, plan.estimates.device_memory
    if needed > there:
        found.note(f"{case.name}: not run, it needs {needed / 1e9:.0f} GB by the plan, and there are {there / 1e9:.0f} GB.")
        return None
    if case.plain:
        [result] = train_ranks(plan, warm=warm, measured=measured, seconds=setup.left, random_weights=True, environment=_PLAIN)
        return result
    return train_here(plan, warm=warm, measured=measured, profile=True)


def _base(work: Path, shape: Mapping[str, Any]) -> Path:
    """Return the base model of these sizes, written once."""
    folder = work / f"{shape['num_hidden_layers']}x{shape['hidden_size']}"
    return folder if folder.exists() else shapes.write_base(folder, shape)


def _as_name(text: str) -> str:
    return "".join(sign if sign.isalnum() else "-" for sign in text)


def _whole(few: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, float]:
    """Return what a step of all 32 layers would take, by the line through 4 and 8 of them."""
    layer = (more["ms"] - few["ms"]) / 4
    whole = few["ms"] + 28 * layer
    return {"layer_ms": round(layer, 2), "ms": round(whole, 1), "tokens_per_s": round(1e3 * few["tokens"] / whole, 1)}
