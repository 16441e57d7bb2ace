"""Some iterations of a plan as the ranks of a run do them, without events, checkpoints and export.

The plan is the planner's and each step the trainer's, so what is measured is what a run does between two events. `python -m
bench.gpu.trained RUN OUT WARM MEASURED RANDOM` is one rank of several.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench import flops, operators
from bench.gpu import shapes
from bench.runs import Job, plan_of
from medsft.core.engine.nn.dtensor import local_part
from medsft.core.engine.parallel.master_weights import MasterWeights
from medsft.core.engine.parallel.mesh import open_mesh
from medsft.core.engine.train.batches import RankBatch, prefetch
from medsft.core.engine.train.build import build_trainer
from medsft.core.engine.train.peak_memory import peak_memory
from medsft.core.engine.train.trainer import Trainer
from medsft.core.planning.plan import RunPlan
from medsft.core.run.launch import engine_environment, load_launched_plan, write_start
from medsft.core.run.rundir import RunDir

_LR = 1e-5
_PEAKS = (
    *(("H100 PCIe", 756e12), ("H100 NVL", 835e12), ("H100", 989e12), ("H200", 989e12), ("GH200", 989e12), ("A100", 312e12)),
    *(("L40S", 362e12), ("L4", 121e12), ("A10", 125e12)),
)
"""FLOP/s of dense bf16 products by NVIDIA's data sheets, by a part of the device's name; the first that fits counts."""
NO_GPUS = {"CUDA_VISIBLE_DEVICES": ""}
"""Of a process that is to see none."""
_END_SECONDS = 15
"""That ranks have to end when they are told to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A training that is measured: documents of one length, of whose tokens some three quarters are the question's."""

    name: str
    base: Path
    documents: int
    """In one iteration."""
    length: int
    """Labels of each."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the run, beside these."""
    rows: int = 16


def plan_case(case: Case, work: Path, *, iterations: int) -> RunPlan:
    """Write rows for a case, tokenize and plan. Raises what a plan raises."""
    vocabulary = json.loads((case.base / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    file = work / f"{case.base.name}-{case.length}.jsonl"
    if not file.exists():
        # Longer than they may be: they are cut to one length.
        question, answer = 3 * case.length // 4, case.length // 2
        shapes.write_rows(file, vocabulary, count=case.rows, question=question, answer=answer)
    job = Job(base=case.base, rows=file, steps=iterations, seq=case.length, global_batch=case.documents)
    options = {
        "template": "meditron",
        "micro_batch": None,
        "id": case.name,
        "keep_best": "none",
        "retokenize": False,
        **case.options,
    }
    return plan_of(job, work, **options)


def train_here(
    plan: RunPlan, *, warm: int, measured: int, random_weights: bool = True, profile: bool = False
) -> dict[str, Any]:
    """Train in this process and return what was measured; see `steps`."""
    run = write_start(plan)
    try:
        return steps(plan, run, warm=warm, measured=measured, random_weights=random_weights, profile=profile)
    finally:
        shutil.rmtree(run.path, ignore_errors=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def train_ranks(
    plan: RunPlan,
    *,
    warm: int,
    measured: int,
    seconds: float,
    random_weights: bool = False,
    environment: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Train in processes of their own, several by torchrun, and return what each rank measured.

    They have the base's weights, or `random_weights`. For `NO_GPUS` in their `environment` the plan must have been made so, too
    (`without_gpus`). Raises RuntimeError with the end of what they wrote when they fail, `subprocess.TimeoutExpired` when they
    take longer than `seconds`.
    """
    run = write_start(plan)
    environment = {**engine_environment(plan.layout.world), **(environment or {})}
    try:
        with tempfile.TemporaryDirectory() as out:
            world = plan.layout.world
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world}"] if world > 1 else []
            numbers = (str(int(number)) for number in (warm, measured, random_weights))
            command = [sys.executable, *launcher, "-m", "bench.gpu.trained", str(run.path), out, *numbers]
            _run_to_end(command, environment, seconds)
            return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path(out).glob("*.json"))]
    finally:
        shutil.rmtree(run.path, ignore_errors=True)


def _run_to_end(command: Sequence[str], environment: Mapping[str, str], seconds: float) -> None:
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said, _ = process.communicate(timeout=seconds)
        if process.returncode:
            raise RuntimeError(f"the ranks ended with {process.returncode}:\n{said[-3000:]}")
    finally:
        if process.poll() is None:
            process.terminate()  # torchrun then ends its ranks, which a kill would leave alive
            try:
                process.wait(timeout=_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def without_gpus() -> Iterator[None]:
    """Plan, and start processes, as on a machine without GPUs."""
    [name] = NO_GPUS
    before = os.environ.get(name)
    os.environ.update(NO_GPUS)
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def steps(
    plan: RunPlan, run: RunDir, *, warm: int, measured: int, random_weights: bool = False, profile: bool = False
) -> dict[str, Any]:
    """Train `warm` iterations, then `measured` ones that are timed, and one under the profiler if that is asked for.

    Return losses and norms of all of them, the median time of those that were timed, rates, and peaks of memory.
    """
    mesh = open_mesh(plan.layout, device_kind=plan.estimates.device_kind)
    _reset_peaks(mesh.device)
    began = time.perf_counter()
    trainer = build_trainer(plan, run, mesh, None)
    if random_weights:
        fill(trainer.masters)
    loaded = time.perf_counter() - began
    losses, norms, seconds = list[float](), list[float](), list[float]()
    batches = prefetch(trainer.train_batches, range(warm + measured + int(profile)))
    batch = next(batches)
    for iteration in range(1, warm + measured + 1):
        began = _now(mesh.device)
        result = trainer.step(batch, iteration, _LR)
        seconds.append(_now(mesh.device) - began)
        losses.append(result.loss)
        norms.append(result.norm)
        batch = next(batches, batch)
    found = {
        "model": f"{plan.base.model.num_parameters() / 1e9:.2f}e9",
        "layout": str(plan.layout),
        "precision": plan.precision,
        "recompute": plan.recompute,
        "micro_batch": plan.micro_batch,
        "micro_batches": len(batch.micro_batches),
        "tokens": batch.tokens,
        "load_s": round(loaded, 2),
        "losses": losses,
        "norms": norms,
        **_rates(plan, batch, statistics.median(seconds[warm:])),
        **_memory(plan, mesh.device),
    }
    if profile:
        found |= _profile(trainer, batch, warm + measured + 1)
    return found


def fill(masters: MasterWeights) -> None:
    """Put random numbers in the place of a base's zeros: products of zeros are faster than those of a model.

    An adapter stays as it begins.
    """
    with torch.no_grad():
        for name, parameter in {**masters.by_name, **masters.frozen}.items():
            own = local_part(parameter)
            if "lora_" in name:
                continue
            if own.ndim > 1:
                own.normal_(0, 0.02)
            else:
                own.fill_(1.0)
        for weight in masters.quantized.values():
            local_part(weight.codes).random_(0, 256)
            local_part(weight.scales).random_(-127, 128)
            local_part(weight.groups)[:, 0] = 0.05
            local_part(weight.groups)[:, 1] = 1e-4
        masters.copy_to_compute()


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _rates(plan: RunPlan, batch: RankBatch, seconds: float) -> dict[str, Any]:
    """Return the rates of all ranks together for one iteration that took so long."""
    length = batch.tokens // plan.global_batch
    lengths = [length] * plan.global_batch
    frozen = plan.config.lora is not None
    rate = flops.per_token(plan.base.model, lengths, [batch.supervised_tokens], frozen=frozen) * batch.tokens / seconds
    peak = peak_rate()
    return {
        "ms": round(1e3 * seconds, 2),
        "tokens_per_s": round(batch.tokens / seconds, 1),
        "tflops": round(rate / 1e12 / plan.layout.world, 2),
        "mfu": round(rate / plan.layout.world / peak, 4) if peak and plan.precision == "bf16" else None,
    }


def peak_rate() -> float | None:
    """Return the FLOP/s of bf16 products that the data sheet of this GPU has; None for one that is not known here."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((rate for part, rate in _PEAKS if part in name), None)


def _reset_peaks(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.init()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _memory(plan: RunPlan, device: torch.device) -> dict[str, Any]:
    """Return the peak as the events of a run have it, beside the plan's, in GB."""
    peak, planned = peak_memory(device), plan.estimates.memory.total
    found = {"peak_gb": round(peak / 1e9, 3), "plan_gb": round(planned / 1e9, 3), "of_plan": round(peak / planned, 3)}
    if device.type == "cuda":
        found["allocated_gb"] = round(torch.cuda.max_memory_allocated(device) / 1e9, 3)
        found["reserved_gb"] = round(torch.cuda.max_memory_reserved(device) / 1e9, 3)
    return found


def _profile(trainer: Trainer, batch: RankBatch, iteration: int) -> dict[str, Any]:
    """Return what one more iteration is made of; print its longest operators."""
    from torch.profiler import profile

    began = _now(trainer.mesh.device)
    with profile(activities=operators.activities()) as seen:
        trainer.step(batch, iteration, _LR)
        seconds = _now(trainer.mesh.device) - began
    found = operators.read(seen)
    for name, own in sorted(found.operators.items(), key=lambda item: -item[1])[:25]:
        print(f"    {1e3 * own:9.2f} ms  {name}")
    return {
        "kernels": found.kernels,
        "kernel_ms": round(1e3 * found.kernel_seconds, 2),
        "host_ms": round(1e3 * found.host_seconds, 2),
        "profiled_ms": round(1e3 * seconds, 2),
        "groups_ms": {group: round(1e3 * own, 2) for group, own in found.groups.items()},
    }


def _rank(run_dir: str, out: str, warm: str, measured: str, random_weights: str) -> None:
    run = RunDir(Path(run_dir))
    plan = load_launched_plan(run)
    found = steps(plan, run, warm=int(warm), measured=int(measured), random_weights=random_weights == "1")
    Path(out, f"{torch.distributed.get_rank():03}.json").write_text(json.dumps(found), encoding="utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    _rank(*sys.argv[1:])
