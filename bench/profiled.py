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
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import documents, operators
from bench.runs import Job, plan_of, unpack_base
from bench.table import Row, print_table, say
from medsft.core.devices import find_devices

_WARM, _MEASURED = 1, 2
_ALONE = ("1 process", "1 process, fp32")
_LAYOUTS: dict[str, dict[str, Any]] = {
    _ALONE[0]: {"nproc_per_node": 1},
    _ALONE[1]: {"nproc_per_node": 1, "precision": "fp32"},
    "dp 2": {"nproc_per_node": 2},
    "tp 3": {"nproc_per_node": 3, "tp": 3},
    "pp 2": {"nproc_per_node": 2, "pp": 2},
}
_IDLE = "idle"
"""Of a step on a GPU, what no kernel takes: the device waits for the host."""


def measure(work: Path) -> dict[str, Any]:
    """Print the shares of a step's time at several layouts and return the seconds by group and by operator."""
    job = Job(base=unpack_base(work / "base"), rows=documents.write(work / "pubmedqa_like.jsonl", 400), steps=_WARM + _MEASURED)
    results: dict[str, Any] = {}
    rows: list[Row] = []
    columns = (*operators.GROUPS, operators.REST, *([_IDLE] if find_devices().kind == "cuda" else []))
    for name, options in _layouts().items():
        found = _profile(replace(job, micro_batch=min(job.micro_batch, job.global_batch // 2)), work, options)
        results[name] = found
        say(f"  {name}: {found['seconds']:.1f} s a step")
        shares = {group: f"{100 * found['groups'].get(group, 0) / found['seconds']:.1f} %" for group in columns}
        rows.append({"layout": name, "a step, s": f"{found['seconds']:.2f}"} | shares)
    print_table("Share of a step's time, slowest rank; a collective counts from its begin to its end, waiting included", rows)
    for name in _ALONE:
        longest = sorted(results[name]["operators"].items(), key=lambda item: -item[1])[:12]
        total = results[name]["seconds"]
        print_table(f"Operators of {name}", [{"operator": k, "share": f"{100 * v / total:.1f} %"} for k, v in longest])
    return results


def _layouts() -> dict[str, dict[str, Any]]:
    """Return the layouts that this machine has devices for, and say which it has not."""
    devices = find_devices()
    most = devices.count if devices.kind == "cuda" else max(options["nproc_per_node"] for options in _LAYOUTS.values())
    fits = {name: options for name, options in _LAYOUTS.items() if options["nproc_per_node"] <= most}
    if missing := [name for name in _LAYOUTS if name not in fits]:
        say(f"  not measured with {devices.count} of {devices.name}: {', '.join(missing)}")
    return fits


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
    from torch.profiler import profile

    from medsft.core.engine.parallel.mesh import open_mesh
    from medsft.core.engine.train.batches import prefetch
    from medsft.core.engine.train.build import build_trainer
    from medsft.core.planning.plan import RunPlan
    from medsft.core.run.launch import read_launch
    from medsft.core.run.rundir import RunDir

    run = RunDir(Path(run_dir))
    plan = read_launch(run).apply(RunPlan.from_json(run.read_plan(), where=run_dir))
    mesh = open_mesh(plan.layout, device_kind=plan.estimates.device_kind)
    trainer = build_trainer(plan, run, mesh, None)
    batches = prefetch(trainer.train_batches, range(_WARM + _MEASURED))
    for iteration in range(_WARM):
        trainer.step(next(batches), iteration + 1, 1e-5)
    started = time.perf_counter()
    with profile(activities=operators.activities()) as seen:
        for iteration in range(_MEASURED):
            trainer.step(next(batches), iteration + 1, 1e-5)
    if mesh.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - started) / _MEASURED
    found = operators.read(seen)
    groups = {group: own / _MEASURED for group, own in found.groups.items()}
    if mesh.device.type == "cuda":
        groups[_IDLE] = max(0.0, seconds - found.kernel_seconds / _MEASURED)
    by_operator = {name: own / _MEASURED for name, own in found.operators.items()}
    Path(out, f"{mesh.rank}.json").write_text(json.dumps({"seconds": seconds, "groups": groups, "operators": by_operator}))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    work_of_a_rank(*sys.argv[1:])
