"""What trains in less memory: the codec of nf4, LoRA, QLoRA and 8-bit AdamW beside the CPU, and peaks beside the plan's."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from bench.gpu import shapes
from bench.gpu.part import Findings, Setup
from bench.gpu.trained import NO_GPUS, Case, plan_case, train_here, train_ranks, without_gpus
from medsft.core.config.run_config import RunConfig
from medsft.core.devices import find_devices
from medsft.core.engine.kernels.nf4 import Packed, Part, pack, unpack

_KINDS: dict[str, dict[str, Any]] = {
    "LoRA": {"adapter": "lora"},
    "QLoRA": {"adapter": "lora", "base_precision": "nf4"},
    "8-bit AdamW": {"optimizer": "adamw8bit"},
}
"""By the name of a kind of training, its options."""
_LARGE = "LoRA", "QLoRA"
"""Those whose peak is measured at the size of a 1B model."""
_LIMITS = {"fp32": 1e-4, "bf16": 2e-2}
_WARM, _MEASURED = 1, 3
_ITERATIONS = _WARM + _MEASURED
_CPU_SECONDS = 90.0
_MATRICES = ((256, 256), (129, 200))
"""Rows and columns: of whole blocks, and with a last block that is not whole."""


def measure(setup: Setup, found: Findings) -> None:
    """See the module."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = find_devices().bf16 or setup.tiny
    for size in _MATRICES:
        for dtype in (torch.float32, torch.bfloat16):
            what = f"nf4, {size[0]} x {size[1]}, to {str(dtype).removeprefix('torch.')}"
            with found.attempt(what, right=True):
                _check_codec(found, what, size, dtype, device)
    precisions = ("fp32", "bf16") if bf16 and not setup.tiny else ("fp32",)
    known = {field.name for field in fields(RunConfig)}
    kinds = [kind for kind, options in _KINDS.items() if options.keys() <= known]
    _compare(found, setup, [(kind, precision) for kind in kinds for precision in precisions])
    large = shapes.write_base(setup.work / "1b", shapes.sized(shapes.LLAMA_1B, tiny=setup.tiny))
    for kind in _LARGE:
        with found.attempt(f"{kind} of a 1B model", right=True):
            found.figure(f"{kind}, 1B", _one_b(large, setup, kind, _KINDS[kind], bf16=bf16))


def _check_codec(found: Findings, what: str, size: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
    """The numbers of the codes must be the CPU's: the base model is what all of a run is computed from."""
    matrix, part = torch.randn(size), Part.whole(*size)
    packed = pack(part, lambda rows: matrix[rows])
    there = Packed(packed.codes.to(device), packed.scales.to(device), packed.groups.to(device))
    ours = unpack(there, part, torch.empty(size, dtype=dtype, device=device)).cpu()
    wanted = unpack(packed, part, torch.empty(size, dtype=dtype))
    found.at_most(f"{what}, largest difference from the CPU", float((ours.float() - wanted.float()).abs().max()), 0.0)


def _compare(found: Findings, setup: Setup, wanted: Sequence[tuple[str, str]]) -> None:
    """Check losses and norms on the device against those of the same in processes that see no GPU, which run meanwhile."""
    base = shapes.write_random_base(setup.work / "small", shapes.SMALL)
    with ThreadPoolExecutor() as pool:
        on_cpu = {}
        with without_gpus():
            for kind, precision in wanted:
                plan = plan_case(_small_case(base, "cpu", kind, precision), setup.work, iterations=_ITERATIONS)
                seconds = setup.left if setup.tiny else min(_CPU_SECONDS, setup.left)
                on_cpu[kind, precision] = pool.submit(
                    train_ranks, plan, warm=_WARM, measured=_MEASURED, seconds=seconds, environment=NO_GPUS
                )
        for kind, precision in wanted:
            name = f"{kind}, {precision}"
            with found.attempt(f"{name}, beside the CPU", right=True):
                plan = plan_case(_small_case(base, "device", kind, precision), setup.work, iterations=_ITERATIONS)
                ours = train_here(plan, warm=_WARM, measured=_MEASURED, random_weights=False)
                [cpu] = on_cpu[kind, precision].result()
                for what, limit in (("losses", 1), ("norms", 5)):
                    found.figure(f"{name}, {what}", {"device": ours[what], "cpu": cpu[what]})
                    difference = max(abs(a / b - 1) for a, b in zip(ours[what], cpu[what], strict=True))
                    found.at_most(f"{name}: {what} beside the CPU's, relative", difference, limit * _LIMITS[precision])


def _small_case(base: Path, where: str, kind: str, precision: str) -> Case:
    return Case(
        name=f"{where}-{kind.replace(' ', '-')}-{precision}",
        base=base,
        documents=4,
        length=96,
        options={**_KINDS[kind], "precision": precision},
    )


def _one_b(base: Path, setup: Setup, kind: str, options: dict[str, Any], *, bf16: bool) -> dict[str, Any]:
    case = Case(
        name=kind,
        base=base,
        documents=2 if setup.tiny else 8,
        length=32 if setup.tiny else 2048,
        options={**options, "precision": "bf16" if bf16 else "fp32"},
    )
    plan = plan_case(case, setup.work, iterations=_ITERATIONS)
    return train_here(plan, warm=_WARM, measured=2 if setup.tiny else _MEASURED)
