"""All layouts of up to 4 ranks, and 2 x 2 x 2: what they compute next to one process, and their memory next to the plan's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bench import documents
from bench.runs import Job, plan_of, train, unpack_base
from bench.table import Row, print_table, say
from medsft.core.planning.layout import Layout

_SIZES = {
    "num_hidden_layers": 8,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
_COUNTS = (1, 2, 4)
_ALL = [Layout(pp=pp, dp=dp, tp=tp) for pp in _COUNTS for dp in _COUNTS for tp in _COUNTS]
LAYOUTS = [*(layout for layout in _ALL if layout.world <= 4), Layout(pp=2, dp=2, tp=2)]


def measure(work: Path) -> dict[str, Any]:
    """Train a random model at each layout in fp32, from the same start on the same documents, and print the table."""
    job = Job(
        base=_model(unpack_base(work / "base"), work / "base-layouts"),
        rows=documents.write(work / "layouts.jsonl", 60),
        global_batch=8,
        micro_batch=2,
        steps=4,
        precision="fp32",
    )
    results: dict[str, Any] = {}
    rows: list[Row] = []
    expected: list[tuple[float, float]] = []
    for layout in LAYOUTS:
        levels = {"pp": layout.pp, "tp": layout.tp, "nproc_per_node": layout.world}
        plan = plan_of(job, work, **levels)
        events = train(plan)
        steps = [event.data for event in events if event.kind == "step"]
        found = [(step["loss"], step["grad_norm"]) for step in steps]
        expected = expected or found
        differences = [max(abs(a[i] / b[i] - 1) for a, b in zip(found, expected, strict=True)) for i in (0, 1)]
        peak, planned = max(step["memory_bytes"] for step in steps), plan.estimates.memory.total
        rate = sum(step["tokens"] for step in steps[1:]) / sum(step["step_seconds"] for step in steps[1:])
        results[str(layout)] = {"differences": differences, "peak": peak, "planned": planned, "tokens_per_second": rate}
        say(f"  {layout}: loss {differences[0]:.1e}")
        rows.append(
            {
                "layout": str(layout),
                "largest relative difference of loss": f"{differences[0]:.1e}",
                "of gradient norm": f"{differences[1]:.1e}",
                "peak of a rank, GB": f"{peak / 1e9:.2f}",
                "of the plan's": f"{peak / planned:.2f}",
                "tokens/s": f"{rate:.0f}",
            }
        )
    print_table(f"Layouts in fp32, 4 iterations, {torch.get_num_threads()} threads in all", rows)
    return results


def _model(base: Path, folder: Path) -> Path:
    """A random model whose heads divide by 4, with the base model's tokenizer."""
    if not folder.exists():
        config = AutoConfig.from_pretrained(base, **_SIZES)
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
        for file in base.glob("*"):
            if file.suffix in (".json", ".jinja") and not (folder / file.name).exists():
                shutil.copy(file, folder / file.name)
    return folder
