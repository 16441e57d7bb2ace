"""Looking at base checkpoints: which kind, which iteration, what is missing. Megatron-LLM folders: see tests/engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from medsft.core.models.inspect import inspect_base
from medsft.errors import MismatchError


def test_hugging_face_folder(tmp_path):
    folder = tiny.write_base(tmp_path / "llama2-7b-tp4-pp1", tokenizer=False)
    for name in ("tokenizer.json", "optimizer.pt"):
        (folder / name).write_bytes(b"123")
    base = inspect_base(folder)
    size = (folder / "model.safetensors").stat().st_size
    assert (base.kind, base.weights, base.tokenizer, base.size_bytes) == ("hf", folder, folder, size)
    assert (base.tp, base.pp, base.iteration, base.iterations) == (4, 1, None, ())
    assert base.config is not None
    assert base.config.num_kv_heads == 2


def write_shards(folder: Path) -> list[Path]:
    """Two files with the tensors in turn, and their index."""
    tensors = tiny.describe_weights(tiny.write_base(folder, weights=False, tokenizer=False))
    files = [f"model-0000{part + 1}-of-00002.safetensors" for part in (0, 1)]
    places = {name: files[number % 2] for number, name in enumerate(tensors)}
    for file in files:
        tiny.write_tensors(folder / file, {name: tensors[name] for name in tensors if places[name] == file})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return [folder / file for file in files]


def test_shards_are_counted_and_missed(tmp_path):
    files = write_shards(tmp_path / "m")
    assert inspect_base(tmp_path / "m").size_bytes == sum(file.stat().st_size for file in files)
    files[1].unlink()
    with pytest.raises(MismatchError, match=r"1 of 2 weight files are missing: model-00002-of-00002\.safetensors"):
        inspect_base(tmp_path / "m")


def test_numbered_checkpoints(tmp_path):
    for number, dtype in ((500, "BF16"), (1500, "F32")):
        tiny.write_weights(tiny.write_base(tmp_path / f"out/checkpoint-{number}", weights=False, tokenizer=False), dtype)
    (tmp_path / "out/tokenizer.model").touch()
    latest = inspect_base(tmp_path / "out")
    size = (tmp_path / "out/checkpoint-1500/model.safetensors").stat().st_size
    assert (latest.iteration, latest.iterations, latest.size_bytes) == (1500, (500, 1500), size)
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
        (folder / "config.json").write_text(json.dumps(tiny.LLAMA))
        (folder / "__0_0.distcp").write_bytes(b"\0" * number)
        if complete:
            (folder / ".metadata").touch()
            (folder / "manifest.json").write_text(json.dumps({"files": {".metadata": {"bytes": 0}}}))
    (run / "plan.json").write_text("{}")
    base = inspect_base(run)
    assert (base.kind, base.iteration, base.iterations, base.size_bytes) == ("medsft-run", 20, (10, 20), 20)
    assert (base.tp, base.pp) == (2, 1)
    assert "iter_0000030" in base.warnings[0]
    assert "manifest.json is missing" in base.warnings[0]
    one = inspect_base(run / "iter_0000010")
    assert (one.kind, one.size_bytes) == ("dcp", 10)
    with pytest.raises(MismatchError, match=r"iter_0000030 is damaged: manifest\.json is missing"):
        inspect_base(run, 30)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file or folder"),
        (lambda path: path.mkdir(), "not a checkpoint of a known kind"),
        (lambda path: path.touch(), "a folder or a .gguf file"),
        (lambda path: tiny.write_base(path, weights=False, tokenizer=False), "no weights"),
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
    folder = tiny.write_base(tmp_path / "m", tokenizer=False)
    code = f"""
import sys
from pathlib import Path
from medsft.core.models.inspect import inspect_base
inspect_base(Path({str(folder)!r}))
assert not {{"torch", "numpy", "gguf"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
