"""How long after its process has started a run makes its first step, also after a resume; and what a checkpoint costs."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import medsft
from bench import documents
from bench.runs import Job, plan_of, remove, train

_TURNS = 3
_SAVE_INTERVAL = 50


def measure(base: Path, work: Path) -> dict[str, float]:
    """Return medians in seconds, and the extremes of starts and resumes."""
    rows = documents.write(work / "pubmedqa_like.jsonl", 400)
    turns = [_start_and_resume(Job(base=base, rows=rows, steps=6, global_batch=2, micro_batch=2), work) for _ in range(_TURNS)]
    starts, resumes = zip(*turns, strict=True)
    figures = {}
    for name, seconds in (("start", starts), ("resume", resumes)):
        figures[f"{name}, until the first step begins, s"] = statistics.median(seconds)
        figures[f"the fastest {name}, s"], figures[f"the slowest {name}, s"] = min(seconds), max(seconds)
    return figures | _save(Job(base=base, rows=rows, steps=6), work)


def _start_and_resume(job: Job, work: Path) -> tuple[float, float]:
    """Planned and tokenized before; stopped, with a checkpoint, after a few steps."""
    plan = plan_of(job, work, save_interval=3)
    try:
        return _until_first_step(plan, stop=True), _until_first_step(plan, stop=False)
    finally:
        remove(plan)


def _until_first_step(plan: medsft.RunPlan, *, stop: bool) -> float:
    began = time.time()
    run = medsft.start(plan)
    first = None
    for event in medsft.follow(run):
        if event.kind == "step" and event.time > began and first is None:
            first = event
            if stop:
                run.request("stop")
    if first is None:
        raise RuntimeError(f"the run made no step; its logs are in {run.logs}")
    return first.time - first.data["step_seconds"] - began


def _save(job: Job, work: Path) -> dict[str, float]:
    """Checkpoints that are written while training goes on, at the steps of the comparison with peers."""
    events = train(plan_of(job, work, save_interval=3))
    step = statistics.median([event.data["step_seconds"] for event in events if event.kind == "step"][1:])
    stalled = statistics.median(event.data["stalled_seconds"] for event in events if event.kind == "checkpoint")
    return {
        "a step, s": step,
        "training stands still for a checkpoint, s": stalled,
        f"share of that at --save_interval {_SAVE_INTERVAL}": stalled / (_SAVE_INTERVAL * step + stalled),
    }
