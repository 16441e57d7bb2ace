"""Looking at base checkpoints: which kind, which iteration, what is missing. Megatron-LLM folders: see tests/engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from medsft.core.basemodel import inspect_base
from medsft.errors import MismatchError

RAW = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def write_hf(folder: Path, files: dict[str, int]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(RAW))
    for name, size in files.items():
        (folder / name).write_bytes(b"\0" * size)
    return folder


def test_hugging_face_folder(tmp_path):
    folder = write_hf(tmp_path / "llama2-7b-tp4-pp1", {"model.safetensors": 100, "tokenizer.json": 3, "optimizer.pt": 999})
    base = inspect_base(folder)
    assert (base.kind, base.weights, base.tokenizer, base.size_bytes) == ("hf", folder, folder, 100)
    assert (base.tp, base.pp, base.iteration, base.iterations) == (4, 1, None, ())
    assert base.config is not None
    assert base.config.num_kv_heads == 2


def test_shards_are_counted_and_missed(tmp_path):
    folder = write_hf(tmp_path / "m", {"a.safetensors": 10, "b.safetensors": 20})
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors", "z": "a.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert inspect_base(folder).size_bytes == 30
    (folder / "b.safetensors").unlink()
    with pytest.raises(MismatchError, match=r"1 of 2 weight files are missing: b\.safetensors"):
        inspect_base(folder)


def test_numbered_checkpoints(tmp_path):
    for number in (500, 1500):
        write_hf(tmp_path / f"out/checkpoint-{number}", {"model.safetensors": number})
    (tmp_path / "out/tokenizer.model").touch()
    latest = inspect_base(tmp_path / "out")
    assert (latest.iteration, latest.iterations, latest.size_bytes) == (1500, (500, 1500), 1500)
    assert latest.tokenizer == tmp_path / "out/tokenizer.model"
    assert inspect_base(tmp_path / "out", 500).weights == tmp_path / "out/checkpoint-500"
    with pytest.raises(MismatchError, match="there is no checkpoint-700") as caught:
        inspect_base(tmp_path / "out", 700)
    assert "checkpoint-500, checkpoint-1500" in caught.value.hint


def test_run_and_its_checkpoints(tmp_path):
    run = tmp_path / "llama-1b-tp2-pp1-base-words"
    for number, complete in ((10, True), (20, True), (30, False)):
        folder = run / f"iter_{number:07d}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(RAW))
        (folder / "__0_0.distcp").write_bytes(b"\0" * number)
        if complete:
            (folder / ".metadata").touch()
    (run / "plan.json").write_text("{}")
    base = inspect_base(run)
    assert (base.kind, base.iteration, base.iterations, base.size_bytes) == ("medsft-run", 20, (10, 20), 20)
    assert (base.tp, base.pp) == (2, 1)
    one = inspect_base(run / "iter_0000010")
    assert (one.kind, one.size_bytes) == ("dcp", 10)
    with pytest.raises(MismatchError, match="there is no iter_0000030"):
        inspect_base(run, 30)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file or folder"),
        (lambda path: path.mkdir(), "not a checkpoint of a known kind"),
        (lambda path: path.touch(), "a folder or a .gguf file"),
        (lambda path: write_hf(path, {}), "no weights"),
        (lambda path: path.with_suffix(".gguf").write_bytes(b"GGUF" + b"\0" * 9), "cannot be read as GGUF"),
    ],
    ids=["nothing", "empty", "file", "no weights", "damaged GGUF"],
)
def test_what_is_no_base_model(make, message, tmp_path):
    path = tmp_path / "m"
    make(path)
    with pytest.raises(MismatchError, match=message):
        inspect_base(path if not path.with_suffix(".gguf").exists() else path.with_suffix(".gguf"))


def test_no_torch_is_needed(tmp_path):
    folder = write_hf(tmp_path / "m", {"model.safetensors": 1})
    code = f"""
import sys
from pathlib import Path
from medsft.core.basemodel import inspect_base
inspect_base(Path({str(folder)!r}))
assert not {{"torch", "numpy", "gguf"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
