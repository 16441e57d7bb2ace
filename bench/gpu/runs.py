"""Whole runs on the device: losses beside the CPU's, validation, save, export, a kill and a resume, and no memory left.

medsft sft       on the device and on the CPU, in fp32 and in bf16, all at once
medsft rehearse  in both, and with 8-bit AdamW: six iterations, SIGKILL, a resume that must give the same losses bit for bit
medsft ask       answers with the finished model as on the CPU
transformers     loads the finished model, whose loss on the validation set must be what the run said
a full card      ends a run with exit code 6, and a message that says so
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import medsft
from bench.gpu import shapes
from bench.gpu.part import Findings, Setup
from bench.gpu.trained import NO_GPUS, without_gpus
from medsft.core.data.tokenizers.template import Role
from medsft.core.devices import find_devices
from medsft.core.run.rundir import RunDir
from medsft.errors import ExitCode

_LARGE_SHAPE = {
    **shapes.SMALL,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 8,
    "head_dim": 128,
}
"""121e6 parameters: in bf16 with fp32 masters, gradients and moments 2.2 GB."""
_LEFT_FREE = 1800 << 20
"""Of a full card: room for the process and the weights of `_LARGE_SHAPE`, none for its gradients and moments."""
_LIMITS = {"fp32": 1e-4, "bf16": 2e-2}
"""Of a loss, relative to the CPU's: bf16 keeps 8 bits of each number."""
_ITERATIONS, _TINY_ITERATIONS = 12, 4
_CHECKPOINT = "check"
_QUESTION = "w5 w17 w2 w60"
_ENDING_SECONDS = 20


def measure(setup: Setup, found: Findings) -> None:
    """See the module."""
    devices = find_devices()
    base = shapes.write_random_base(setup.work / "base", shapes.SMALL)
    config, settings = _project(setup.work, base, iterations=_TINY_ITERATIONS if setup.tiny else _ITERATIONS)
    precisions = ("fp32",) if setup.tiny or not devices.bf16 else ("fp32", "bf16")
    with _ended(setup) as running:
        for precision in precisions:
            for device in ("gpu", "cpu") if devices.kind == "cuda" else ("cpu",):
                with nullcontext() if device == "gpu" else without_gpus():
                    one = replace(config, id=f"{device}-{precision}", precision=precision)
                    running[device, precision] = medsft.start(medsft.prepare(one, medsft.load_settings(settings)))
        rehearsals = {
            name: _start_rehearsal(replace(config, id=f"rehearsed-{name}", **options), settings)
            for name, options in _rehearsed(precisions, on_gpu=devices.kind == "cuda").items()
        }
        for (device, precision), run in running.items():
            with found.attempt(f"{device}, {precision}", right=True):
                _await(run, setup)
                _check_run(found, run, f"{device} {precision}")
        for name, rehearsal in rehearsals.items():
            with found.attempt(f"medsft rehearse, {name}", right=True):
                _check_rehearsal(found, rehearsal, name, setup)
    for precision in precisions:
        with found.attempt(f"exported model, {precision}", right=True):
            device = "gpu" if devices.kind == "cuda" else "cpu"
            _check_export(found, running[device, precision], config, precision)
        if devices.kind == "cuda":
            with found.attempt(f"losses beside the CPU's, {precision}", right=True):
                _compare(found, running["gpu", precision], running["cpu", precision], precision)
    with found.attempt("medsft ask", right=True):
        _check_answers(found, running["gpu" if devices.kind == "cuda" else "cpu", "fp32"], setup)
    if devices.kind != "cuda":
        found.note("No GPU: no losses to compare with the CPU's, and no card to fill.")
        return
    with found.attempt("a full card", right=True):
        _check_full_card(found, setup)


def _project(folder: Path, base: Path, *, iterations: int) -> tuple[medsft.RunConfig, Path]:
    """Write rows and medsft.toml, and return the config of a short run and the settings file."""
    settings = folder / "medsft.toml"
    settings.write_text(f"[checkpoints.{_CHECKPOINT}]\n0.1 = {json.dumps(str(base))}\n", encoding="utf-8")
    vocabulary = int(shapes.SMALL["vocab_size"])
    config = medsft.RunConfig(
        checkpoint=_CHECKPOINT,
        size=0.1,
        run_name="rows",
        data=(shapes.write_uneven_rows(folder / "rows.jsonl", vocabulary, count=80, longest=200),),
        val=(shapes.write_uneven_rows(folder / "val.jsonl", vocabulary, count=11, longest=200, seed=1),),
        tokenized_data_dir=folder / "tokenized",
        save_checkpoint_dir=folder / "runs",
        seq=512,
        iters=iterations,
        lr=1e-3,
        min_lr=1e-4,
        global_batch=8,
        save_interval=iterations // 2,
        eval_interval=iterations // 2,
        export_checkpoint="last",
        nproc_per_node=1,
    )
    return config, settings


@contextmanager
def _ended(setup: Setup) -> Iterator[dict[tuple[str, str], RunDir]]:
    """Give a place for runs, and ask those to stop that still run when the part ends before they do."""
    running: dict[tuple[str, str], RunDir] = {}
    try:
        yield running
    finally:
        for run in running.values():
            if run.alive():
                run.request("stop")


def _await(run: RunDir, setup: Setup) -> None:
    """Wait until nothing works on a run any more. Raises TimeoutError when the part's time is nearly over."""
    while run.alive():
        if setup.left < _ENDING_SECONDS:
            raise TimeoutError(f"{run.path.name} has not ended")
        time.sleep(0.2)


def _check_run(found: Findings, run: RunDir, name: str) -> None:
    view = run.view()
    found.holds(f"{name}: the run finishes", view.outcome == "finished", f"{view.outcome} {view.reason}")
    losses = list(view.series.get("loss", ()))
    if not losses:
        return
    found.figure(name, {"losses": losses, "memory_gb": view.memory_bytes / 1e9, "checkpoints": len(view.checkpoints)})
    found.holds(f"{name}: it learns", losses[-1] < losses[0], f"{losses[0]:.3f} to {losses[-1]:.3f}")
    found.holds(f"{name}: it saves", len(view.checkpoints) >= 2, f"{len(view.checkpoints)} checkpoints")


def _compare(found: Findings, one: RunDir, other: RunDir, precision: str) -> None:
    """Check losses, norms and validations of two runs against each other."""
    ours, cpus = one.view(), other.view()
    for name, a, b in (
        ("losses", ours.series["loss"], cpus.series["loss"]),
        ("norms", ours.series["grad_norm"], cpus.series["grad_norm"]),
        ("validations", ours.eval_series["loss"], cpus.eval_series["loss"]),
    ):
        difference = max(abs(x / y - 1) for x, y in zip(a, b, strict=True))
        limit = _LIMITS[precision] * (5 if name == "norms" else 1)
        found.at_most(f"{precision}: {name} beside the CPU's, relative", difference, limit)


def _rehearsed(precisions: Sequence[str], *, on_gpu: bool) -> dict[str, dict[str, Any]]:
    """Return names and options of the runs that are rehearsed: what differs in what a resume has to repeat bit for bit."""
    found: dict[str, dict[str, Any]] = {precision: {"precision": precision} for precision in precisions}
    if on_gpu and "optimizer" in {field.name for field in fields(medsft.RunConfig)}:
        found["adamw8bit"] = {"precision": precisions[-1], "optimizer": "adamw8bit"}
    return found


def _start_rehearsal(config: medsft.RunConfig, settings: Path) -> subprocess.Popen[str]:
    file = settings.with_name(f"{config.id}.toml")
    medsft.save_toml(config, file)
    command = [sys.executable, "-m", "medsft", "rehearse", "--config", str(file), "--settings", str(settings), "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _check_rehearsal(found: Findings, process: subprocess.Popen[str], name: str, setup: Setup) -> None:
    try:
        said, errors = process.communicate(timeout=max(1.0, setup.left - _ENDING_SECONDS))
    finally:
        process.kill()
    last = errors.strip().splitlines()[-1:] or [""]
    found.holds(f"medsft rehearse, {name}, ends with 0", process.returncode == 0, f"{process.returncode} {last[0]}")
    result = json.loads(said)
    found.figure(f"rehearsal_{name}", result)
    for resumed in result["resumes"]:
        found.at_most(f"{name}: a loss after SIGKILL and a resume differs by", resumed["difference"], 0.0)


def _check_export(found: Findings, run: RunDir, config: medsft.RunConfig, precision: str) -> None:
    """Check the loss of the exported model, as transformers computes it in fp32, against the run's last validation."""
    from transformers import AutoModelForCausalLM

    view = run.view()
    assert view.export is not None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(view.export, dtype=torch.float32).to(device).eval()
    data = medsft.open_tokenized(config.tokenized_data_dir / f"{config.run_name}-val")
    total, count = 0.0, 0
    with torch.no_grad():
        for number in range(data.num_documents):
            tokens = torch.tensor(data.tokens(number).astype("int64"), device=device)
            answers = torch.from_numpy(data.roles(number)[1:] == Role.ANSWER).to(device)
            nll = F.cross_entropy(model(tokens[None, :-1]).logits[0].float(), tokens[1:], reduction="none")
            total, count = total + float(nll[answers].sum()), count + int(answers.sum())
    said = view.eval_series["loss"][-1]
    found.at_most(f"{precision}: the exported model's validation loss in transformers", abs(total / count / said - 1),
                  _LIMITS[precision])  # fmt: skip


def _check_answers(found: Findings, run: RunDir, setup: Setup) -> None:
    """Ask the finished model on the device and on the CPU: the most likely tokens in fp32 must be the same."""
    command = [sys.executable, "-m", "medsft", "ask", run.view().export, _QUESTION, "--max_tokens", "24"]
    environments = {"device": dict(os.environ), "CPU": os.environ | NO_GPUS}
    if find_devices().kind != "cuda":
        del environments["device"]
    asked = {
        where: subprocess.Popen(
            [*command, "--precision", "fp32", "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for where, environment in environments.items()
    }
    answers = {}
    for where, process in asked.items():
        try:
            said, errors = process.communicate(timeout=max(1.0, setup.left - _ENDING_SECONDS))
        finally:
            process.kill()
        last = errors.strip().splitlines()[-1:] or [""]
        found.holds(f"medsft ask on the {where} ends with 0", process.returncode == 0, f"{process.returncode} {last[0]}")
        answers[where] = json.loads(said)["answer"]
    found.figure("answers", answers)
    if "device" in answers:
        found.holds("the most likely answer is the CPU's", answers["device"] == answers["CPU"], answers["device"])


def _check_full_card(found: Findings, setup: Setup) -> None:
    """Start a run while this process holds all of the card but what its weights need: it must say that memory is short."""
    folder = setup.work / "full"
    folder.mkdir()
    config, settings = _project(folder, shapes.write_base(folder / "base", _LARGE_SHAPE), iterations=4)
    config = replace(config, precision="bf16" if find_devices().bf16 else "fp32", micro_batch=8)
    plan = medsft.prepare(config, medsft.load_settings(settings))
    held = torch.empty(max(0, torch.cuda.mem_get_info()[0] - _LEFT_FREE), dtype=torch.uint8, device="cuda")
    try:
        with _ended(setup) as running:
            running["gpu", "full"] = run = medsft.start(plan)
            _await(run, setup)
    finally:
        del held
        torch.cuda.empty_cache()
    view = run.view()
    found.holds("a full card ends a run with 6", view.exit_code == int(ExitCode.TRAINING), f"{view.outcome}, {view.exit_code}")
    found.holds("its message says that memory is short", "out of memory" in view.reason.lower(), view.reason)
    found.holds("it says what to do", bool(view.remedy), view.remedy)
