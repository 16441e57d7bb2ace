"""Processes that are killed, interrupted, or want the same set at the same time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from live import wait_for, wait_until_gone
from set_request import SetRequest

from medsft.core.data.dataset.dataset import open_tokenized
from medsft.core.data.dataset.spec import TokenizeSpec

# Each chunk waits for a file, so that the test decides when tokenizing goes on.
SCRIPT = """
import sys, time, json
from pathlib import Path
from medsft.core.data.dataset import pool
from medsft.core.data.dataset.spec import TokenizeSpec
from medsft.core.data.dataset.tokenize import tokenize
from medsft.core.data.sources import jsonl
folder, tokenizer, data, flags = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])
pool._SMALL_INPUT_BYTES, jsonl._BLOCK_BYTES = 0, 2000
def wait(progress):
    (folder / f"{flags['id']}.{progress.stage}").touch()
    while progress.stage == "tokenize" and not (folder / "go").exists():
        time.sleep(0.01)
spec = TokenizeSpec(data=(data,), tokenizer=tokenizer)
retokenize = flags.get("retokenize", False)
print(tokenize(spec, folder / "sets" / "x", workers=2, retokenize=retokenize, progress=wait).fingerprint)
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"question {n}", "gold": f"answer {n}"}) + "\n" for n in range(500)))
    return path


@pytest.fixture
def start(tmp_path: Path, hf_folder: Path, data: Path) -> Start:
    def begin(**flags: object) -> subprocess.Popen[str]:
        arguments = [str(tmp_path), str(hf_folder), str(data), json.dumps(flags)]
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return begin


def _request(tmp_path: Path, hf_folder: Path, data: Path) -> SetRequest:
    return SetRequest(tmp_path / "sets" / "x", TokenizeSpec(data=(data,), tokenizer=hf_folder))


def _visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_killed_half_way_leaves_nothing_that_looks_like_a_set(
    tmp_path: Path, hf_folder: Path, data: Path, start: Start
) -> None:
    process = start(id="a")
    wait_for((tmp_path / "a.tokenize").exists)
    workers = [child.pid for child in psutil.Process(process.pid).children()]
    assert len(workers) == 2
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    wait_until_gone(*workers)
    assert _visible(tmp_path / "sets") == []
    assert any((tmp_path / "sets").glob(".x.making-*"))
    assert _request(tmp_path, hf_folder, data).make().num_documents == 500
    assert _visible(tmp_path / "sets") == ["x"]
    assert not any((tmp_path / "sets").glob(".x.making-*"))


def test_interrupted_by_ctrl_c_cleans_up(tmp_path: Path, start: Start) -> None:
    process = start(id="a")
    wait_for((tmp_path / "a.tokenize").exists)
    workers = [child.pid for child in psutil.Process(process.pid).children()]
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert errors.rstrip().endswith("KeyboardInterrupt")
    wait_until_gone(*workers)
    assert [path.name for path in (tmp_path / "sets").iterdir()] == [".x.lock"]


def test_two_at_once_make_one_set(tmp_path: Path, hf_folder: Path, data: Path, start: Start) -> None:
    first = start(id="a")
    wait_for((tmp_path / "a.tokenize").exists)
    second = start(id="b")
    wait_for((tmp_path / "b.wait").exists)
    (tmp_path / "go").touch()
    outputs = [process.communicate(timeout=60) for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0] == f"{open_tokenized(tmp_path / 'sets' / 'x').fingerprint}\n"
    assert not (tmp_path / "b.tokenize").exists()


def test_two_at_once_replace_a_set_once(tmp_path: Path, hf_folder: Path, data: Path, start: Start) -> None:
    _request(tmp_path, hf_folder, data).make()
    data.write_text(data.read_text() * 2)
    first = start(id="a", retokenize=True)
    wait_for((tmp_path / "a.tokenize").exists)
    assert open_tokenized(tmp_path / "sets" / "x").num_documents == 500
    second = start(id="b", retokenize=True)
    wait_for((tmp_path / "b.wait").exists)
    (tmp_path / "go").touch()
    outputs = [process.communicate(timeout=60) for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0], outputs
    assert open_tokenized(tmp_path / "sets" / "x").num_documents == 1000
    assert not (tmp_path / "b.tokenize").exists()
    assert _visible(tmp_path / "sets") == ["x"]
