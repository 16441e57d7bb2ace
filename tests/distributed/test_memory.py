"""The memory that a plan says is the memory that training takes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

from medsft.core.architecture import from_hf_config
from medsft.core.config import from_mapping
from medsft.core.engine.formats.hf import write_hf
from medsft.core.planning.plan import RunPlan
from medsft.core.registry import load_settings
from medsft.core.run.events import EventReader

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(240)]

RAW = {
    "model_type": "llama",
    "vocab_size": 16384,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "num_key_value_heads": 6,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}


def plan_of_large_model(folder: Path) -> RunPlan:
    """64 M parameters, so that the model and not the process takes the memory."""
    model = from_hf_config(RAW, where="config.json")
    weights = ((name, torch.full(shape, 0.01)) for name, shape in model.parameter_shapes())
    write_hf(folder / "base", model, weights, dtype=torch.float32)
    tiny.write_tokenizer(folder / "base")
    row = json.dumps({"prompt": " ".join(tiny.WORDS[:30]), "gold": " ".join(tiny.WORDS[:30])})
    (folder / "train.jsonl").write_text(f"{row}\n" * 16)
    (folder / "medsft.toml").write_text('[checkpoints.m]\n1 = "base"\n')
    config = {
        "checkpoint": "m",
        "size": 1,
        "run_name": "words",
        "data": [folder / "train.jsonl"],
        "tokenized_data_dir": folder / "tokenized",
        "save_checkpoint_dir": folder / "runs",
        "global_batch": 8,
        "micro_batch": 2,
        "iters": 2,
        "precision": "fp32",
        "tp": 2,
        "pp": 2,
        "nproc_per_node": 4,
    }
    return tiny.plan_of(from_mapping(config), load_settings(folder / "medsft.toml"))


def train(plan: RunPlan, log: Path) -> int:
    """Train with one fresh process for each rank and return the most bytes that one of them held.

    A shell starts them: the peak that the system reports of a process includes that of the process which started it.
    """
    run = tiny.create(plan)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = plan.layout.world
    start = f"RANK=$rank LOCAL_RANK=$rank {sys.executable} -m medsft.core.engine.worker {run.path} & pids+=($!)"
    script = f'pids=(); for rank in $(seq 0 {world - 1}); do {start}; done; for p in "${{pids[@]}}"; do wait $p || exit 1; done'
    environment = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    with log.open("wb") as output:
        subprocess.run(
            ["bash", "-c", script], stdout=output, stderr=output, check=True, timeout=200, env={**os.environ, **environment}
        )
    return max(int(memory) for (memory,) in tiny.series(EventReader(run.events_path).read(), "step", "memory_bytes"))


def test_a_rank_takes_what_the_plan_says(tmp_path):
    plan = plan_of_large_model(tmp_path)
    assert str(plan.layout) == "pp 2 x dp 1 x tp 2"
    measured = train(plan, tmp_path / "log")
    assert plan.estimates.memory.total == pytest.approx(measured, rel=0.15)
