"""Shares as a person types them: tokenize, plan, train, and what the model says of itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from medsft.core.run.rundir import find_runs

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(280)]
FLAGS = ("--checkpoint", "tiny", "--size", "0.001", "--run-name", "words", "--precision", "fp32", "--global_batch", "8")
SHARES = ("--data", "train.jsonl:0.5", "more.jsonl:2", "--val", "0.2", "--group_key", "of.patient")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.project(tmp_path)
    tiny.write_rows(tmp_path / "more.jsonl", 9, seed=2)
    for name in ("train", "more"):
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        text = "".join(json.dumps(row | {"of": {"patient": f"Smith {i // 2}"}}) + "\n" for i, row in enumerate(rows))
        (tmp_path / f"{name}.jsonl").write_text(text)
    return tmp_path


def medsft(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CONFIG_HOME": str(folder / "no-config")}
    command = [sys.executable, "-m", "medsft", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200, env=environment)


def test_a_mixture_from_files_to_a_model_card(folder: Path) -> None:
    tokenized = medsft(folder, "tokenize", *FLAGS, *SHARES)
    assert tokenized.returncode == 0, tokenized.stderr
    planned = json.loads(medsft(folder, "plan", *FLAGS, *SHARES, "--json").stdout)
    mixture, val = planned["train"]["mixture"], planned["val"]
    assert [(part["file"], part["share"]) for part in mixture] == [("train.jsonl", 0.5), ("more.jsonl", 2.0)]
    assert sum(part["available"] for part in mixture) + val["documents"] == 49
    assert f"  --val 0.2: {val['documents']} documents to validate on" in tokenized.stdout
    assert (
        f"  more.jsonl: share 2, {2 * mixture[1]['available']} documents in each epoch from {mixture[1]['available']}\n"
        in tokenized.stdout
    )
    table = medsft(folder, "plan", *FLAGS, *SHARES).stdout
    assert (
        f"train.jsonl: share 0.5, {mixture[0]['documents']} documents in each epoch from {mixture[0]['available']}, " in table
    )
    assert "of the answer tokens" in table

    stopped = medsft(folder, "sft", *FLAGS, *SHARES, "--epochs", "1", "--max_iters", "2", "--plain")
    assert stopped.returncode == 0, stopped.stderr
    [run] = find_runs(folder / "runs")
    other = medsft(folder, "sft", *FLAGS, "--data", "train.jsonl:0.4", *SHARES[2:], "--epochs", "1", "--max_iters", "2")
    assert (other.returncode, "shares of the files of --data: was [0.5, 2.0], now [0.4, 2.0]" in other.stderr) == (1, True)
    card = (Path(run.view().export) / "README.md").read_text()
    assert f"| Training set | {planned['train']['documents']} documents, " in card
    assert (
        f"| Of `more.jsonl` | share 2, {2 * mixture[1]['available']} documents in each epoch from {mixture[1]['available']}, "
        in card
    )
    assert f"| Held out to validate on | {val['documents']} documents, 0.2 of the set by hash, whole groups of rows |" in card
    written = [path for path in folder.rglob("*") if path.is_file() and path.parent != folder and "base" not in path.parts]
    assert [path for path in written if b"Smith" in path.read_bytes()] == []
