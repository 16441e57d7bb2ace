"""Full fine-tuning, LoRA and QLoRA on the same base model and rows, in turns, and TRL with PEFT beside them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench import documents, machine, peers
from bench.runs import Job, Outcome, medsft_outcome, plan_of, train, unpack_base
from bench.table import Row, print_table, say, spread

KINDS: dict[str, dict[str, str]] = {
    "full": {},
    "LoRA": {"adapter": "lora"},
    "QLoRA": {"adapter": "lora", "base_precision": "nf4"},
}
"""By the name of a kind of training, its options."""
_PEER = "TRL + PEFT"
_ROWS = 400


def measure(work: Path, *, rows: Path | None, repeats: int, steps: int, precisions: tuple[str, ...]) -> dict[str, Any]:
    """Print and return rates, peak memory and sizes of checkpoints. Every ratio is of outcomes of one turn."""
    job = Job(base=unpack_base(work / "base"), rows=rows or documents.write(work / "pubmedqa_like.jsonl", _ROWS), steps=steps)
    python = peers.trl_python()
    if python is None:
        say("TRL is not installed: `make bench-peers` builds its environment. Measuring medsft alone.")
    results: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    checkpoints: dict[tuple[str, str], int] = {}
    for turn in range(repeats):
        for precision in precisions:
            now = replace(job, precision=precision)
            say(f"turn {turn + 1}/{repeats}, {precision}: load {machine.measure().load:.1f}")
            for kind, options in KINDS.items():
                events = train(plan_of(now, work, **options))
                results[kind, precision].append(medsft_outcome(events))
                checkpoints[kind, precision] = max(event.data["bytes"] for event in events if event.kind == "checkpoint")
                _say(kind, results[kind, precision][-1])
            if python is not None:
                results[_PEER, precision].append(peers.train_trl(python, now, adapter=True))
                _say(_PEER, results[_PEER, precision][-1])
    _print(results, checkpoints)
    return {
        "job": {key: str(value) for key, value in asdict(job).items()},
        "outcomes": {" ".join(key): [asdict(one) for one in found] for key, found in results.items()},
        "checkpoint_bytes": {" ".join(key): size for key, size in checkpoints.items()},
    }


def _say(kind: str, found: Outcome) -> None:
    say(f"  {kind}: {found.tokens_per_second:.0f} tokens/s, {found.memory_bytes / 1e9:.2f} GB")


def _print(results: dict[tuple[str, str], list[Outcome]], checkpoints: dict[tuple[str, str], int]) -> None:
    rows: list[Row] = []
    for (kind, precision), found in results.items():
        full = results["full", precision]
        rates = [one.tokens_per_second for one in found]
        size = checkpoints.get((kind, precision))
        rows.append(
            {
                "training": kind,
                "precision": precision,
                "tokens/s": spread(rates, ".0f"),
                "times full": spread([a / b.tokens_per_second for a, b in zip(rates, full, strict=True)], ".2f"),
                "peak GB": spread([one.memory_bytes / 1e9 for one in found], ".2f"),
                "of full's": spread([a.memory_bytes / b.memory_bytes for a, b in zip(found, full, strict=True)], ".2f"),
                "checkpoint MB": "" if size is None else f"{size / 1e6:.0f}",
            }
        )
    print_table("Adapters", rows)
