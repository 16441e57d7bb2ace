"""Everything in examples/ does what it says: recipes are planned for the machines that they name, scripts are run by a user."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
from kept import ROOT
from typer.testing import CliRunner

from medsft.cli.app import app
from medsft.core.config.file import load_toml
from medsft.core.devices import Devices
from medsft.core.planning import planner
from medsft.core.run.rundir import find_runs

EXAMPLES = ROOT / "examples"
SMALL = Devices("cuda", 1, 24 * 10**9, "a GPU with 24 GB", bf16=True)
LARGE = Devices("cuda", 8, 80 * 10**9, "a GPU with 80 GB", bf16=True)
QWEN3_06B: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}
LLAMA_8B: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
}
LLAMA_70B = {
    **LLAMA_8B,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}
MODELS = {"Qwen3-0.6B": QWEN3_06B, "Llama-3.1-8B": LLAMA_8B, "Llama-3.1-70B": LLAMA_70B}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The examples as somebody has them who just cloned the repository, and nothing in a config folder."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    copied = tmp_path / "examples"
    copied.mkdir()
    for path in EXAMPLES.iterdir():
        if path.is_file():
            shutil.copy(path, copied)
    monkeypatch.chdir(copied)
    return copied


def medsft(*words: str) -> str:
    result = CliRunner(env={"TERM": "dumb"}).invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize(
    ("recipe", "devices", "layout"),
    [("small_gpu", SMALL, (1, 1, 1)), ("one_node", LARGE, (1, 8, 1)), ("cluster", LARGE, (2, 2, 8))],
)
def test_a_recipe_fits_the_machines_that_it_names(
    folder: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, devices: Devices, layout: tuple[int, int, int]
) -> None:
    """With documents nearly as long as the recipe allows: the few rows beside it are short, and would fit anything."""
    for name, sizes in MODELS.items():
        tiny.write_base(folder / "models" / name, weights=False, **sizes)
    seq = load_toml(folder / f"{recipe}.toml").seq
    row = json.dumps({"prompt": "w1 " * int(1.2 * seq), "gold": "w2 " * 50}) + "\n"
    (folder / "train.jsonl").write_text(row * 128)
    monkeypatch.setattr(planner, "find_devices", lambda: devices)
    plan: dict[str, Any] = json.loads(medsft("plan", "--config", f"{recipe}.toml", "--json"))
    assert tuple(plan["layout"][name] for name in ("pp", "dp", "tp")) == layout
    assert plan["train"]["longest"] > 0.9 * seq
    estimates = plan["estimates"]
    assert sum(estimates["memory"].values()) <= devices.memory_bytes
    assert not any("memory" in warning for warning in plan["warnings"]), plan["warnings"]
    for gigabytes in re.findall(r"checkpoints of about (\d+) GB", (folder / f"{recipe}.toml").read_text()):
        assert estimates["checkpoint_bytes"] == pytest.approx(int(gigabytes) * 10**9, rel=0.05)


def test_the_job_of_the_cluster(folder: Path) -> None:
    job = medsft("sft", "--config", "cluster.toml", "--slurm")
    assert "#SBATCH --nodes=4\n" in job
    assert "--gpus-per-node=8" in job
    subprocess.run(["bash", "-n"], input=job, text=True, check=True)
    lines = medsft("sft", "--config", "cluster.toml", "--addr", "node0", "--print_commands").splitlines()
    assert [f"--rank {rank}" in line or rank == 0 for rank, line in enumerate(lines)] == [True] * 4


@pytest.fixture
def trainable(folder: Path) -> Path:
    """With a small model in the place of the one of the first recipe."""
    model = folder / "models" / "Qwen3-0.6B"
    model.mkdir(parents=True)
    tiny.write_model(model, "qwen3")
    return folder


def python(*words: str) -> str:
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_the_scripts(trainable: Path) -> None:
    """In the order of the table; the run is watched while it trains."""
    with subprocess.Popen([sys.executable, "train.py", "small_gpu.toml"], stdout=subprocess.PIPE, text=True) as training:
        while training.poll() is None and not find_runs(trainable / "runs"):
            time.sleep(0.2)
        watched = python("watch.py")
        trained, _ = training.communicate(timeout=200)
    assert training.returncode == 0, trained
    [run] = find_runs(trainable / "runs")
    view = run.view()
    steps = [f"iteration {step}: loss {loss:.4f}" for step, loss in zip(view.steps, view.series["loss"], strict=True)]
    assert len(steps) == 3
    for output in (trained, watched):
        assert [line for line in output.splitlines() if line.startswith("iteration")] == steps
    assert trained.splitlines()[-1] == f"The model is in {view.export}"
    assert watched.splitlines()[-1] == f"finished: {view.export}"
    assert "finished, iteration 3 of 3" in python("watch.py", "runs")

    looked = python("look.py", "tokenized/first", "models/Qwen3-0.6B").splitlines()
    assert looked[0].startswith("12 documents of ")
    parts = [line.split(",")[0].strip() for line in looked[1:]]
    assert parts == ["document 0", "question", "answer", "document 1", "question", "answer"]

    medsft("export", "first", "--to", "model-3", "--iteration", "3")
    assert set(python("chat.py", "model-3", "w1 w2 w3").split()) & set(tiny.WORDS)


def test_the_files_are_in_the_table_and_the_table_has_no_others() -> None:
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    there = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".toml")}
    assert set(re.findall(r"\]\((\w+\.\w+)\)", text)) == there
