"""Several devices: the losses of data, tensor and pipeline parallel runs beside those of one device, and their rates.

On GPUs these communicate by NCCL; with sizes of tests and no GPU, processes do by gloo.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.gpu import shapes
from bench.gpu.part import Findings, Setup
from bench.gpu.trained import Case, plan_case, train_ranks
from medsft.core.devices import find_devices
from medsft.core.planning.layout import Layout

_SMALL = {
    **shapes.SMOLLM2_135M,
    "vocab_size": 1024,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 64,
}
"""Heads and layers that up to eight ranks can divide."""
_COUNTS = 2, 4, 8
_LIMITS = {"fp32": 1e-4, "bf16": 2e-2}
_SECONDS = 90.0


def measure(setup: Setup, found: Findings) -> None:
    """See the module."""
    devices = find_devices()
    count = devices.count if devices.kind == "cuda" else 2 * int(setup.tiny)
    layouts = [Layout(tp=2)] if setup.tiny and devices.kind == "cpu" else _layouts(count)
    if not layouts:
        have = "one GPU" if devices.kind == "cuda" else "no GPU"
        found.note(f"NCCL, and data, tensor and pipeline parallel on it: not run, there is {have}.")
        return
    base = shapes.write_random_base(setup.work / "small", shapes.sized(_SMALL, tiny=setup.tiny))
    for precision in ("fp32", "bf16") if devices.bf16 and not setup.tiny else ("fp32",):
        expected: dict[str, Any] | None = None
        for layout in [Layout(), *layouts]:
            name = f"{layout}, {precision}"
            with found.attempt(name, right=True):
                result = _train(_case(setup, base, layout, precision), setup)
                found.figure(name, result)
                expected = expected or result
                for what, limit in (("losses", 1), ("norms", 5)):
                    pairs = zip(result[what], expected[what], strict=True)
                    difference = max(abs(a / b - 1) for a, b in pairs)
                    found.at_most(f"{name}: {what} beside one device's, relative", difference, limit * _LIMITS[precision])
    if devices.kind == "cuda":
        with found.attempt("rates", right=True):
            _rates(setup, found, count)


def _case(setup: Setup, base: Path, layout: Layout, precision: str) -> Case:
    """Return a few documents for a layout."""
    sizes = {"tp": layout.tp, "pp": layout.pp, "nproc_per_node": layout.world, "micro_batch": 1, "precision": precision}
    name = f"layout-{layout.pp}-{layout.dp}-{layout.tp}-{precision}"
    return Case(name=name, base=base, documents=8, length=32 if setup.tiny else 256, options=sizes)


def _layouts(count: int) -> list[Layout]:
    """Return each kind alone and all of them together, for as many devices as there are."""
    found = []
    for n in (n for n in _COUNTS if n <= count):
        found += [Layout(dp=n), Layout(tp=n), Layout(pp=n)]
    if count >= 4:
        found += [Layout(dp=2, tp=2), Layout(pp=2, tp=2)]
    return [*found, Layout(pp=2, dp=2, tp=2)] if count >= 8 else found


def _train(case: Case, setup: Setup, *, random_weights: bool = False) -> dict[str, Any]:
    """Return what the first rank measured, with the largest peak of all."""
    plan = plan_case(case, setup.work, iterations=4)
    seconds = setup.left if setup.tiny else min(_SECONDS, setup.left)
    ranks = train_ranks(plan, warm=1, measured=3, seconds=seconds, random_weights=random_weights)
    return ranks[0] | {"peak_gb": max(rank["peak_gb"] for rank in ranks)}


def _rates(setup: Setup, found: Findings, count: int) -> None:
    """Measure a 1B model, which every GPU can hold, on one device, data parallel on all, and tensor parallel on two."""
    base = shapes.write_base(setup.work / "1b", shapes.sized(shapes.LLAMA_1B, tiny=setup.tiny))
    results = {}
    for layout in (Layout(), Layout(dp=count), Layout(tp=2)):
        if setup.left < 40 and not setup.tiny:
            found.note(f"rates at {layout}: not run, no time was left.")
            return
        options = {"tp": layout.tp, "pp": 1, "nproc_per_node": layout.world}
        length = 32 if setup.tiny else 2048
        name = f"rate-{layout.dp}-{layout.tp}"
        case = Case(name=name, base=base, documents=8 * layout.dp, length=length, options=options)
        results[str(layout)] = _train(case, setup, random_weights=True)
        found.figure("rates of a 1B model", results)
