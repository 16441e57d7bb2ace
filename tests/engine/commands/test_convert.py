"""Conversions between all formats: exact where nothing is rounded, verified, and small in memory."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import megatron_formulas as formulas
import pytest
import torch

from medsft.core.engine.commands import convert as module
from medsft.core.engine.commands.convert import convert
from medsft.core.engine.formats.hf import write_hf
from medsft.core.engine.formats.open import open_source
from medsft.core.models.config import ModelConfig
from medsft.core.models.conversion import Conversion
from medsft.core.models.inspect import inspect_base
from medsft.errors import MismatchError

SIZES = {**formulas.SIZES, "vocab_size": 99}
CONFIG = ModelConfig(
    family="llama", **SIZES, norm_eps=1e-5, rope_theta=1e4, max_position_embeddings=64, tie_embeddings=False, eos_token_id=2
)


@pytest.fixture
def base(tmp_path):
    """A Hugging Face folder in bf16, with something that stands for its tokenizer."""
    weights = formulas.random_weights(SIZES, dtype=torch.bfloat16)
    write_hf(tmp_path / "base", CONFIG, weights.items(), dtype=torch.bfloat16)
    (tmp_path / "base/tokenizer.model").write_text("pieces")
    return tmp_path / "base"


def job(source, destination, to, **options):
    return Conversion(source=source, destination=destination, to=to, **options)


def weights_of(path):
    source = open_source(path)
    return {name: source.read(name) for name in source.names()}


@pytest.mark.parametrize("first", ["hf", "megatron", "dcp"])
@pytest.mark.parametrize("second", ["hf", "megatron", "dcp"])
def test_every_pair_is_exact(first, second, base, tmp_path):
    levels = {"hf": {}, "dcp": {}, "megatron": {"tp": 2, "pp": 2}}
    for source, destination, to in ((base, "one", first), (tmp_path / "one", "two", second)):
        result = convert(job(source, tmp_path / destination, to, verify=True, **levels[to]))
        assert (result.largest_logit_difference, result.dtype, result.vocab_size) == (0.0, "bfloat16", 99)
        assert result.warnings == ()
    expected, found = weights_of(base), weights_of(tmp_path / "two")
    torch.testing.assert_close(found, expected, atol=0, rtol=0)
    described = inspect_base(tmp_path / "two")
    assert described.config == CONFIG
    assert described.tokenizer == tmp_path / "two/tokenizer.model"


def test_to_bf16_says_how_far_the_logits_move(tmp_path):
    write_hf(tmp_path / "base", CONFIG, formulas.random_weights(SIZES).items(), dtype=torch.float32)
    result = convert(job(tmp_path / "base", tmp_path / "out", "hf", dtype="bf16"))
    assert result.dtype == "bfloat16"
    assert 1e-6 < result.largest_logit_difference < 0.1


def test_a_model_that_is_not_finite_is_not_called_verified(tmp_path):
    weights = formulas.random_weights(SIZES)
    weights["model.norm.weight"][3] = torch.nan
    write_hf(tmp_path / "base", CONFIG, weights.items(), dtype=torch.float32)
    with pytest.raises(MismatchError, match="base: the model computes logits that are not finite"):
        convert(job(tmp_path / "base", tmp_path / "out", "megatron"))


def test_a_wrong_destination_is_noticed(base, tmp_path, monkeypatch):
    def swapped(root, source, **options):
        class Swapped:
            def __getattr__(self, name):
                return getattr(source, name)

            def read(self, name, slices=None):
                return source.read(name.replace("up_proj", "gate_proj"), slices)

        return module_write(root, Swapped(), **options)

    module_write = module.write_megatron
    monkeypatch.setattr(module, "write_megatron", swapped)
    with pytest.raises(MismatchError, match="logits differ"):
        convert(job(base, tmp_path / "out", "megatron"))
    assert convert(job(base, tmp_path / "again", "megatron", verify=False)).largest_logit_difference is None


def test_vocabulary_grows_and_shrinks(base, tmp_path):
    result = convert(job(base, tmp_path / "more", "hf", true_vocab_size=101, vocab_divisible_by=8))
    assert result.created_rows == (99, 100)
    before, after = weights_of(base)["lm_head.weight"], weights_of(tmp_path / "more")["lm_head.weight"]
    assert torch.equal(after[:99], before)
    assert torch.equal(after[99:101], before.double().mean(0).bfloat16().expand(2, -1))
    assert torch.equal(after[101:], before[-1].expand(3, -1))
    convert(job(tmp_path / "more", tmp_path / "less", "megatron", true_vocab_size=99, tp=2))
    assert torch.equal(weights_of(tmp_path / "less")["lm_head.weight"], before)


def test_files_of_the_original_say_nothing_about_padding(tmp_path):
    formulas.write_folder(tmp_path / "m-tp2-pp1", formulas.random_weights(formulas.SIZES), formulas.SIZES, tp=2, iteration=800)
    result = convert(job(tmp_path / "m-tp2-pp1", tmp_path / "out", "megatron", tp=1, pp=4))
    assert "All 128 rows of the tables were kept" in result.warnings[0]
    there = inspect_base(tmp_path / "out")
    assert (there.iteration, there.tp, there.pp) == (800, 1, 4)
    assert there.saved_arguments["consumed_train_samples"] == 128
    assert convert(job(tmp_path / "out", tmp_path / "cut", "hf", true_vocab_size=99)).vocab_size == 99


class Hostile:
    def __reduce__(self):
        return os.system, ("echo executed",)


def test_checkpoint_folders_are_not_trusted_either(base, tmp_path, capfd):
    folder = tmp_path / "dcp"
    convert(job(base, folder, "dcp"))
    whole = (folder / ".metadata").read_bytes()
    (folder / ".metadata").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(MismatchError, match=r"asks for `(posix|nt)\.system`"):
        open_source(folder)
    assert capfd.readouterr().out == ""
    (folder / ".metadata").write_bytes(whole)
    os.truncate(folder / "__0_0.distcp", 2000)
    with pytest.raises(MismatchError, match="cannot be read"):
        weights_of(folder)


def test_the_list_of_contents_that_was_checked_is_the_one_that_is_read_by(base, tmp_path, capfd):
    folder = tmp_path / "dcp"
    convert(job(base, folder, "dcp"))
    source = open_source(folder)
    (folder / ".metadata").write_bytes(pickle.dumps(Hostile()))
    found = {name: source.read(name) for name in source.names()}
    torch.testing.assert_close(found, weights_of(base), atol=0, rtol=0)
    assert capfd.readouterr().out == ""


def test_an_existing_destination_is_refused_before_the_work(base, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "theirs").touch()
    for to in ("hf", "dcp"):
        with pytest.raises(MismatchError, match="exists already"):
            convert(job(base, tmp_path / "out", to))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["theirs"]


def test_process_prints_the_result_or_one_message(base, tmp_path):
    wanted = job(base, tmp_path / "m", "megatron", tp=2, verify=False)
    command = [sys.executable, "-m", "medsft.core.engine.commands.convert", wanted.to_json()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["parameters"] == CONFIG.num_parameters()
    assert result["largest_logit_difference"] is None
    again = subprocess.run(command, capture_output=True, text=True)
    assert (again.returncode, again.stdout) == (4, "")
    assert "exists already" in again.stderr


_MEASURE = """
import re, sys
from pathlib import Path
import torch
from medsft.core.engine.commands.convert import convert
from medsft.core.models.conversion import Conversion

def status(field):
    return 1024 * int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

small, large, to, out = sys.argv[1:]
options = {"to": to, "dtype": "keep", "verify": to == "megatron", **({"tp": 2, "pp": 2} if to == "megatron" else {})}
convert(Conversion(source=Path(small), destination=Path(out + "-small"), **options))   # whatever torch keeps for good
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")   # forgets the peak so far
convert(Conversion(source=Path(large), destination=Path(out), **options))
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_memory_is_a_tenth_of_the_model_and_a_layer(tmp_path):
    many = ModelConfig(
        **{
            **{name: getattr(CONFIG, name) for name in CONFIG.__dataclass_fields__},
            **{"hidden_size": 384, "intermediate_size": 1056, "num_layers": 48, "head_dim": 96, "num_kv_heads": 4},
        }
    )
    for name, config in (("small", CONFIG), ("many", many)):
        tensors = ((weight, torch.full(shape, 0.01)) for weight, shape in config.parameter_shapes())
        write_hf(tmp_path / name, config, tensors, dtype=torch.float32)
    limit = 4 * (many.num_parameters() // 10 + many.layer_parameters())
    sources = [tmp_path / "small", tmp_path / "many"]
    for to in ("megatron", "hf"):
        command = [sys.executable, "-c", _MEASURE, *map(str, sources), to, str(tmp_path / f"to-{to}")]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) < limit, to
        sources = [tmp_path / f"to-{to}-small", tmp_path / f"to-{to}"]
