"""Runs, sets and TOML files of earlier versions: they are read, resumed and exported as by the version that wrote them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kept import OLD_PROJECTS
from safetensors.numpy import load_file
from tiny import series

from medsft.core.run.events import Event, EventReader
from medsft.core.run.rundir import RunDir, find_runs

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(280)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The project folder that 0.1.0 wrote, moved to another place; nobody has given a sign of life in it for long."""
    moved = shutil.copytree(OLD_PROJECTS / "0.1.0", tmp_path / "moved")
    for heartbeat in moved.rglob("heartbeat"):
        os.utime(heartbeat, (0, 0))
    return moved


def medsft(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "medsft", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CONFIG_HOME": str(folder / "no-config")}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200, env=environment)


def uninterrupted(folder: Path) -> list[Event]:
    return EventReader(folder / "uninterrupted.jsonl").read()


def only_run(folder: Path) -> RunDir:
    [run] = find_runs(folder / "runs")
    return run


@pytest.mark.parametrize("command", [("sft", "--config", "run.toml"), ("resume", "words")], ids=lambda command: command[0])
def test_a_run_of_0_1_0_is_resumed_where_it_was_killed(folder: Path, command: tuple[str, ...]) -> None:
    done = medsft(folder, *command, "--plain")
    assert done.returncode == 0, done.stderr
    view = only_run(folder).view()
    expected = uninterrupted(folder)
    assert view.iteration == len(series(expected, "step", "loss")) == 10
    events = EventReader(only_run(folder).events_path).read()
    last = {event.data["iteration"]: event.data for event in events if event.kind == "step"}
    for [iteration, loss, norm] in series(expected, "step", "iteration", "loss", "grad_norm"):
        # Processors round differently: only on the one that wrote the fixture are they equal bit for bit.
        assert (last[int(iteration)]["loss"], last[int(iteration)]["grad_norm"]) == pytest.approx((loss, norm), rel=1e-5)
    assert series(events, "eval", "iteration", "loss")[-1] == pytest.approx(
        series(expected, "eval", "iteration", "loss")[-1], rel=1e-5
    )
    assert (Path(str(view.export)) / "model.safetensors").exists()


def test_a_checkpoint_of_0_1_0_is_exported(folder: Path) -> None:
    done = medsft(folder, "export", "words", "--to", "model", "--iteration", "4")
    assert done.returncode == 0, done.stderr
    weights = load_file(folder / "model" / "model.safetensors")
    base = load_file(folder / "base" / "model.safetensors")
    assert set(base) <= set(weights)
    assert all((weights[name][: len(old)] != old).any() for name, old in base.items() if old.ndim == 2)
    refused = medsft(folder, "export", "words", "--to", "other", "--iteration", "9")
    assert refused.returncode == 4
    assert "no checkpoint of iteration 9 to export" in refused.stderr
    assert "Checkpoints it has: 4." in refused.stderr


def test_a_set_of_0_1_0_is_used_as_it_is(folder: Path) -> None:
    before = {path: path.read_bytes() for path in (folder / "tokenized").rglob("*.bin")}
    done = medsft(folder, "tokenize", "--config", "run.toml", "--json")
    assert done.returncode == 0, done.stderr
    assert {path: path.read_bytes() for path in (folder / "tokenized").rglob("*.bin")} == before
    [train_set, _] = json.loads(medsft(folder, "inspect", "--config", "run.toml", "--json").stdout)
    assert train_set["documents"] == 40


def test_a_run_of_0_1_0_is_listed(folder: Path) -> None:
    done = medsft(folder, "runs", "--plain")
    assert done.returncode == 0, done.stderr
    assert "llama-0.001b-tp1-pp1-tiny-words-ep1" in done.stdout
