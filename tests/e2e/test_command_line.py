"""The `medsft` command from JSONL to a model, as a person types it, each time in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

from medsft.core.run.rundir import RunDir, find_runs

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(280)]
FLAGS = ("--checkpoint", "tiny", "--size", "0.001", "--run-name", "words", "--precision", "fp32", "--global_batch", "8")
DATA = ("--data", "train.jsonl", "--val", "val.jsonl")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.project(tmp_path)
    return tmp_path


def medsft(folder: Path, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "medsft", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CONFIG_HOME": str(folder / "no-config")}
    return subprocess.run(command, cwd=folder, input=text, capture_output=True, text=True, timeout=200, env=environment)


def test_from_jsonl_to_a_model(folder: Path) -> None:
    tokenized = medsft(folder, "tokenize", *FLAGS, *DATA, "--json")
    assert tokenized.returncode == 0, tokenized.stderr
    inspected = medsft(folder, "inspect", *FLAGS, "--samples", "1", "--json")
    train_set, val_set = json.loads(inspected.stdout)
    assert (train_set["documents"], val_set["documents"]) == (40, 11)
    assert [part["role"] for part in train_set["samples"][0]["parts"]] == ["question", "answer"]
    assert [part["weight"] for part in train_set["samples"][0]["parts"]] == [0.0, 1.0]
    assert "answer, " in medsft(folder, "inspect", *FLAGS, "--samples", "1").stdout

    planned = medsft(folder, "plan", *FLAGS, "--epochs", "1", "--json", "--output", "plan.json")
    plan = json.loads(planned.stdout)
    assert plan == json.loads((folder / "plan.json").read_text())
    assert (plan["train"]["documents"], plan["num_iterations"]) == (40, 5)

    asked = medsft(folder, "sft", *FLAGS, "--epochs", "1", "--no-autoaccept-iters", "--plain", text="6\n")
    assert asked.returncode == 0, asked.stderr
    assert "Accept 5 iterations? [Y/n/number]" in asked.stderr
    assert "6/6  loss" in asked.stdout
    [run] = find_runs(folder / "runs")
    view = run.view()
    assert (run.state(view), view.iteration) == ("finished", 6)

    again = medsft(folder, "sft", *FLAGS, "--epochs", "1", "--no-autoaccept-iters", "--plain")
    assert again.returncode == 1
    assert view.export in again.stderr
    assert "--id NAME" in again.stderr
    [listed] = json.loads(medsft(folder, "runs", "--json").stdout)
    assert (listed["state"], listed["total"]) == ("finished", 6)
    exported = medsft(folder, "export", "words", "--to", "model")
    assert exported.returncode == 0, exported.stderr
    assert (folder / "model" / "model.safetensors").read_bytes() == Path(view.export, "model.safetensors").read_bytes()


def test_a_hang_up_of_the_terminal_does_not_touch_the_run_and_resume_goes_on(folder: Path) -> None:
    flags = ("sft", *FLAGS, *DATA, "--iters", "400", "--plain")
    process = subprocess.Popen([sys.executable, "-m", "medsft", *flags], cwd=folder, start_new_session=True)
    while not (runs := find_runs(folder / "runs")) or not runs[0].view().iteration:
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGHUP)
    assert process.wait(30) == -signal.SIGHUP
    [run] = runs
    seen = run.view().iteration
    wait_until_beyond(run, seen + 3)
    stopped = medsft(folder, "stop", "words")
    assert stopped.returncode == 0, stopped.stderr
    assert run.state(run.view()) == "stopped"
    assert run.latest_checkpoint() == run.view().iteration

    resumed = medsft(folder, "resume", "words", "--nproc_per_node", "2", "--pp", "2", "--tp", "1", "--detach")
    assert resumed.returncode == 0, resumed.stderr
    assert Path(resumed.stdout.strip()) == run.path
    assert "Resharding from pp 1 x dp 1 x tp 1 to pp 2 x dp 1 x tp 1" in resumed.stderr
    wait_until_beyond(run, run.view().iteration + 3)
    assert medsft(folder, "stop", "words").returncode == 0


def wait_until_beyond(run: RunDir, iteration: int) -> None:
    end = time.monotonic() + 90
    while run.view().iteration <= iteration:
        assert time.monotonic() < end, "waited too long"
        assert run.alive(), run.view().reason
        time.sleep(0.05)


def test_data_that_cannot_be_used_is_named_without_its_text(folder: Path) -> None:
    secret = "MRS-EXAMPLE-BORN-1950"
    (folder / "train.jsonl").write_text(f'{{"prompt": "{secret}"}}\n{{"prompt": "w1", "gold": "{secret}"\n')
    result = medsft(folder, "tokenize", *FLAGS, "--data", "train.jsonl")
    assert result.returncode == 3
    assert "train.jsonl:1" in result.stderr
    assert "train.jsonl:2" in result.stderr
    assert secret not in result.stderr + result.stdout
