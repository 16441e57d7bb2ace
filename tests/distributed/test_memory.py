"""The memory that a plan says is the memory that training takes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from medsft.core.config.run_config import from_mapping
from medsft.core.engine.formats.hf import write_hf
from medsft.core.models.config import from_hf_config
from medsft.core.planning.plan import RunPlan
from medsft.core.run.events import EventReader
from medsft.core.run.launch import engine_environment
from medsft.core.settings import load_settings

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


LOAD_A_STAGE = """
import resource, sys
from pathlib import Path
import psutil
from medsft.core.engine.formats.open import open_source
from medsft.core.engine.nn.model import Decoder
from medsft.core.engine.train.weights import load_weights

source = open_source(Path(sys.argv[1]))
stage = Decoder(source.config, layers=range(3), last=False)
load_weights({"model.norm.weight": stage.model.layers["0"].input_layernorm.weight}, source)
before = psutil.Process().memory_info().rss
parameters = dict(stage.named_parameters())
load_weights(parameters, source)
filled = sum(parameter.nbytes for parameter in parameters.values())
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print((peak - before) / filled)
"""


def write_large_model(folder: Path) -> None:
    """64 M parameters, so that the model and not the process takes the memory."""
    model = from_hf_config(RAW, where="config.json")
    weights = ((name, torch.full(shape, 0.01)) for name, shape in model.parameter_shapes())
    write_hf(folder, model, weights, dtype=torch.float32)


def plan_of_large_model(folder: Path, **changes: Any) -> RunPlan:
    """Return the plan of a run of it, on eight ranks where `changes` do not say otherwise."""
    write_large_model(folder / "base")
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
        "iters": 100,
        "precision": "fp32",
        "tp": 2,
        "pp": 2,
        "nproc_per_node": 8,
    }
    return tiny.plan_of(from_mapping({**config, **changes}), load_settings(folder / "medsft.toml"))


def train_two_iterations(plan: RunPlan, log: Path, given: Mapping[str, str] = os.environ) -> int:
    """Train with one fresh process for each rank, and return the most bytes that one of them held in the second iteration.

    A shell starts them: the peak that the system reports of a process includes that of the process which started it.
    """
    run = tiny.create(plan)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = plan.layout.world
    start = f"RANK=$rank LOCAL_RANK=$rank {sys.executable} -m medsft.core.engine.commands.worker {run.path} &"
    script = f"for rank in $(seq 0 {world - 1}); do {start} done; wait"
    environment = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    with log.open("wb") as output:
        shell = subprocess.Popen(
            ["bash", "-c", script], stdout=output, stderr=output, start_new_session=True, env={**given, **environment}
        )
    reader = EventReader(run.events_path)
    peaks: list[tuple[float, ...]] = []
    try:
        while len(peaks) < 2:
            assert shell.poll() is None, log.read_text()
            time.sleep(0.2)
            peaks += tiny.series(reader.read(), "step", "memory_bytes")
    finally:
        os.killpg(shell.pid, signal.SIGKILL)  # nobody waits for a checkpoint
        shell.wait()
    return int(peaks[1][0])


def test_a_rank_takes_what_the_plan_says(tmp_path):
    plan = plan_of_large_model(tmp_path)
    assert str(plan.layout) == "pp 2 x dp 2 x tp 2"
    measured = train_two_iterations(plan, tmp_path / "log")
    assert plan.estimates.memory.total == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize(
    ("changes", "within"),
    [({"pp": 2}, 0.1), ({"pp": 2, "adapter": "lora"}, 0.1), ({"pp": 1, "adapter": "lora"}, 0.2)],
    ids=str,
)
def test_two_ranks_take_what_the_plan_says(tmp_path, changes, within):
    """Stages of a pipeline; and data-parallel ranks that gather the layers of a frozen model, whose heaps differ.

    With what a run sets for its processes, which give no memory back.
    """
    plan = plan_of_large_model(tmp_path, **{"tp": 1, "nproc_per_node": 2, **changes})
    measured = train_two_iterations(plan, tmp_path / "log", engine_environment(2))
    assert plan.estimates.memory.total == pytest.approx(measured, rel=within)


@pytest.mark.parametrize("base_precision", ["fp32", "nf4"])
def test_a_process_that_trains_an_adapter_takes_what_the_plan_says(tmp_path, base_precision):
    one = {"tp": 1, "pp": 1, "nproc_per_node": 1}
    plan = plan_of_large_model(tmp_path, adapter="lora", base_precision=base_precision, **one)
    measured = train_two_iterations(plan, tmp_path / "log")
    assert plan.estimates.memory.total == pytest.approx(measured, rel=0.15)


def test_loading_holds_no_more_than_a_weight_beside_what_it_fills(tmp_path):
    """Pages of the files that are read count as memory of a rank for as long as they are mapped."""
    write_large_model(tmp_path / "base")
    # A shell that stays, for the reason that `train_two_iterations` gives.
    command = f"{sys.executable} -c '{LOAD_A_STAGE}' {tmp_path / 'base'}; exit $?"
    done = subprocess.run(["bash", "-c", command], check=True, capture_output=True, text=True)
    assert float(done.stdout) < 0.5  # what is filled has its memory already
