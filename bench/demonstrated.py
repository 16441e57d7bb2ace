"""The demonstration's task learnt with all weights, LoRA and QLoRA: what each gets right, and what it takes."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import medsft
from bench import machine
from bench.adapters import KINDS
from bench.runs import medsft_outcome, remove
from bench.table import Row, print_table, say
from medsft.core.demo import steps
from medsft.core.demo.clinical import check
from medsft.core.evaluation.measure import Share


def measure(work: Path) -> dict[str, Any]:
    """Train as `medsft demo` does with each kind, print and return accuracy, rates, peak memory and sizes of checkpoints."""
    place = steps.DemoFolder(work / "demonstrated")
    shutil.rmtree(place.path, ignore_errors=True)
    steps.write_base(place)
    _, held_out = steps.write_questions(place)
    before = steps.score(place, place.base, held_out, "before")
    rows = [_row("none", held_out, before) | dict.fromkeys(("lr", "minutes", "tokens/s", "peak GB", "checkpoint MB"), "")]
    found: dict[str, Any] = {"before": before.accuracy}
    for kind, options in KINDS.items():
        say(f"{kind}: load {machine.measure().load:.1f}")
        config = place.config(**options)
        plan = medsft.prepare(config, medsft.load_settings(place.settings))
        folder = medsft.start(plan)
        events = list(medsft.follow(folder))
        if folder.view().outcome != "finished":
            raise RuntimeError(f"the run failed; its logs are in {folder.logs}")
        after = steps.score(place, Path(plan.export_dir), held_out, f"after-{kind}")
        speed = medsft_outcome(events)
        trained = sum(event.data["step_seconds"] for event in events if event.kind == "step")
        checkpoint = max(event.data["bytes"] for event in events if event.kind == "checkpoint")
        rows.append(
            _row(kind, held_out, after)
            | {
                "lr": f"{config.lr:g}",
                "minutes": f"{trained / 60:.1f}",
                "tokens/s": f"{speed.tokens_per_second:.0f}",
                "peak GB": f"{speed.memory_bytes / 1e9:.2f}",
                "checkpoint MB": f"{checkpoint / 1e6:.0f}",
            }
        )
        found[kind] = {"accuracy": after.accuracy, "loss": after.loss, "checkpoint_bytes": checkpoint, **asdict(speed)}
        remove(plan)
    print_table(f"The demonstration's task, {len(held_out)} held-out questions", rows)
    return found


def _row(kind: str, held_out: list[dict[str, str]], score: steps.Score) -> Row:
    right = Share.of([check(row, answer) for row, answer in zip(held_out, score.answers, strict=True)])
    low, high = right.interval
    return {"training": kind, "right": f"{right.value:.1%} ({low:.1%} to {high:.1%})", "loss": f"{score.loss:.3f}"}
