from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_disks

from medsft.core.data.sources.conversation import question_and_answer
from medsft.core.data.tokenizers import gguf_cache
from medsft.core.data.tokenizers.open import open_tokenizer
from medsft.core.run.processes import PARENT_VARIABLE
from medsft.errors import DataError, DiskError, ExitCode


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _write_gguf(path: Path, hf_folder: Path) -> None:
    """A GGUF file with the tokenizer of a folder and one weight."""
    from gguf import GGUFWriter

    model = json.loads((hf_folder / "tokenizer.json").read_text())["model"]
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(model["vocab"], key=model["vocab"].get))
    writer.add_token_types([3 if id_ < 3 else 1 for id_ in range(len(model["vocab"]))])
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_tensor("token_embd.weight", np.zeros((len(model["vocab"]), 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_the_tokenizer_of_a_gguf_file_is_converted_once(
    tmp_path: Path, hf_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "small.gguf"
    _write_gguf(path, hf_folder)
    opened = open_tokenizer(path)
    assert opened.tokenizer.source.is_relative_to(tmp_path / "cache")
    assert opened.tokenizer.added_tokens == open_tokenizer(hf_folder).tokenizer.added_tokens
    ours, theirs = (open_tokenizer(source).tokenizer for source in (path, hf_folder))
    segments = opened.template.render(question_and_answer(question="the dose of aspirin", answer="5 mg é"))
    for made, given in zip(ours.encode(segments), theirs.encode(segments), strict=True):
        assert made.tolist() == given.tolist()
    monkeypatch.setattr(gguf_cache, "_convert", lambda *_: pytest.fail("converted twice"))
    assert open_tokenizer(tmp_path).tokenizer.fingerprint == opened.tokenizer.fingerprint


def test_a_process_of_the_engine_converts_too(tmp_path: Path, hf_folder: Path) -> None:
    """As `medsft convert` does, which is started by the command and starts the conversion of the tokenizer."""
    path = tmp_path / "small.gguf"
    _write_gguf(path, hf_folder)
    program = (
        "import sys; from pathlib import Path; from medsft.core.data.tokenizers.gguf_cache import converted_tokenizer; "
        "from medsft.core.engine.commands.entry_point import run_process; "
        "sys.exit(run_process(lambda words: print(converted_tokenizer(Path(words[0])))))"
    )
    environment = {**os.environ, PARENT_VARIABLE: str(os.getpid())}
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_file()


def test_a_file_without_a_tokenizer_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + b"\0" * 20)
    with pytest.raises(DataError, match=r"broken\.gguf: its tokenizer cannot be read") as caught:
        open_tokenizer(path)
    assert "--tokenizer" in caught.value.hint
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.name != "medsft"]


@pytest.mark.parametrize(("how", "left"), [("full", 9_000), ("without inodes", 0), ("read-only", 0)])
def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, hf_folder: Path, monkeypatch: pytest.MonkeyPatch, how: str, left: int
) -> None:
    path = tmp_path / "small.gguf"
    _write_gguf(path, hf_folder)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(gguf_cache.tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    if how != "full":  # then the conversion is what fails; otherwise it never begins there, and another one will do
        monkeypatch.setattr(
            gguf_cache, "_write_tokenizer", lambda _, folder: shutil.copytree(hf_folder, folder, dirs_exist_ok=True)
        )
    with small_disks.mounted(tmp_path / "cache", "size=1m,nr_inodes=60") as folder:
        begins = small_disks.spoil(folder, how, left=left)
        source = open_tokenizer(path).tokenizer.source
        assert source.is_relative_to(tmp_path / "temporary")
        assert source.parent.parent.stat().st_mode & 0o777 == 0o700
        assert open_tokenizer(path).tokenizer.source == source
        source.parent.parent.chmod(0o777)  # anybody could have put it there
        with pytest.raises(DiskError) as caught:
            open_tokenizer(path)
        assert str(caught.value).startswith(begins)
        assert caught.value.exit_code == ExitCode.DATA
