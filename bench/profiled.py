"""Where the time of a step goes: operators of one process, and what ranks spend on communication.

`measure` plans runs and has torchrun start this file once a rank; each trains under the profiler and writes what it saw.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import documents
from bench.runs import Job, plan_of, unpack_base
from bench.table import Row, print_table, say

_WARM, _MEASURED = 1, 2
_ALONE = ("1 process", "1 process, fp32")
_LAYOUTS: dict[str, dict[str, Any]] = {
    _ALONE[0]: {"nproc_per_node": 1},
    _ALONE[1]: {"nproc_per_node": 1, "precision": "fp32"},
    "dp 2": {"nproc_per_node": 2},
    "tp 3": {"nproc_per_node": 3, "tp": 3},
    "pp 2": {"nproc_per_node": 2, "pp": 2},
}
_GROUPS = {
    "products": ("multiply", "aten::mm", "aten::addmm", "aten::bmm"),
    "attention": ("_TiledAttention", "aten::_scaled_dot_product"),
    "norms, SwiGLU, rotation": ("_RMSNorm", "_SwiGLU", "_Rotate"),
    "loss, without its products": ("_WeightedNLL",),
    "optimizer": ("Optimizer.", "aten::_fused_adam", "aten::_foreach"),
    "communication": ("gloo:", "c10d::", "nccl:", "_c10d_functional::"),
}
"""Names of the profiler's events begin so; what none of these fits is the rest."""


def measure(work: Path) -> dict[str, Any]:
    """Print the shares of a step's time at several layouts and return the seconds by group and by operator."""
    job = Job(base=unpack_base(work / "base"), rows=documents.write(work / "pubmedqa_like.jsonl", 400), steps=_WARM + _MEASURED)
    results: dict[str, Any] = {}
    rows: list[Row] = []
    for name, options in _LAYOUTS.items():
        found = _profile(replace(job, micro_batch=min(job.micro_batch, job.global_batch // 2)), work, options)
        results[name] = found
        say(f"  {name}: {found['seconds']:.1f} s a step")
        shares = {group: f"{100 * found['groups'].get(group, 0) / found['seconds']:.1f} %" for group in (*_GROUPS, "the rest")}
        rows.append({"layout": name, "a step, s": f"{found['seconds']:.2f}"} | shares)
    print_table("Share of a step's time, slowest rank; a collective counts from its begin to its end, waiting included", rows)
    for name in _ALONE:
        longest = sorted(results[name]["operators"].items(), key=lambda item: -item[1])[:12]
        total = results[name]["seconds"]
        print_table(f"Operators of {name}", [{"operator": k, "share": f"{100 * v / total:.1f} %"} for k, v in longest])
    return results


def _profile(job: Job, work: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Train in new processes and return the seconds of a step, by group and by operator, of the rank that communicates least.

    The others wait for it, so its figures say what communication costs.
    """
    from medsft.core.run.launch import engine_environment, write_start

    plan = plan_of(job, work, **options)
    run = write_start(plan)
    try:
        with tempfile.TemporaryDirectory() as out:
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={plan.layout.world}"]
            command += ["-m", "bench.profiled", str(run.path), out]
            subprocess.run(command, check=True, capture_output=True, env=engine_environment(plan.layout.world))
            ranks = [json.loads(path.read_text()) for path in sorted(Path(out).glob("*.json"))]
    finally:
        shutil.rmtree(run.path)
    found: dict[str, Any] = min(ranks, key=lambda rank: float(rank["groups"].get("communication", 0.0)))
    return found


def work_of_a_rank(run_dir: str, out: str) -> None:
    """Train for a few steps without events and checkpoints, and write the profile of the last ones."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from medsft.core.engine.parallel.mesh import open_mesh
    from medsft.core.engine.train.batches import prefetch
    from medsft.core.engine.train.build import build_trainer
    from medsft.core.planning.plan import RunPlan
    from medsft.core.run.launch import read_launch
    from medsft.core.run.rundir import RunDir

    run = RunDir(Path(run_dir))
    plan = read_launch(run).apply(RunPlan.from_json(run.read_plan(), where=run_dir))
    mesh = open_mesh(plan.layout)
    trainer = build_trainer(plan, run, mesh, None)
    batches = prefetch(trainer.train_batches, range(_WARM + _MEASURED))
    for iteration in range(_WARM):
        trainer.step(next(batches), iteration + 1, 1e-5)
    started = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for iteration in range(_MEASURED):
            trainer.step(next(batches), iteration + 1, 1e-5)
    seconds = (time.perf_counter() - started) / _MEASURED
    operators: Counter[str] = Counter()
    groups: dict[str, float] = defaultdict(float)
    for event in seen.key_averages():
        own = event.self_cpu_time_total / 1e6 / _MEASURED
        operators[event.key] += own
        groups[_group(event.key)] += own
    Path(out, f"{mesh.rank}.json").write_text(json.dumps({"seconds": seconds, "groups": groups, "operators": operators}))
    torch.distributed.destroy_process_group()


def _group(operator: str) -> str:
    return next((name for name, begins in _GROUPS.items() if operator.startswith(begins)), "the rest")


if __name__ == "__main__":
    work_of_a_rank(*sys.argv[1:])
