"""Megatron-LLM folders that are damaged, incomplete, contradictory or hostile: each has its own message."""

from __future__ import annotations

import os
from pathlib import Path

import megatron_formulas as formulas
import pytest
import torch

from medsft.core.engine.formats.megatron import open_megatron, write_megatron
from medsft.core.models.inspect import inspect_base
from medsft.core.models.megatron import open_folder
from medsft.errors import MismatchError

SIZES = formulas.SIZES


class Hostile:
    """Makes a folder when it is unpickled without care."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"mkdir {self.target}",)


@pytest.fixture
def folder(tmp_path):
    """A complete checkpoint at tp 2, pp 2; its root is the parent."""
    root = tmp_path / "llama2-7b-tp2-pp2"
    return formulas.write_folder(root, formulas.random_weights(SIZES), SIZES, tp=2, pp=2, iteration=800)


@pytest.mark.parametrize("rank", ["mp_rank_00_000", "mp_rank_01_001"])
def test_hostile_pickle(rank, folder, tmp_path):
    target = tmp_path / "executed"
    torch.save({"args": Hostile(target), "checkpoint_version": 3.0}, folder / rank / "model_optim_rng.pt")
    with pytest.raises(MismatchError, match=r"refused; it asks for `(posix|nt)\.system`") as caught:
        open_megatron(folder.parent)
    assert rank in str(caught.value)
    assert not target.exists()


def test_hostile_pickle_without_torch(folder, tmp_path):
    target = tmp_path / "executed"
    torch.save({"args": Hostile(target), "checkpoint_version": 3.0}, folder / "mp_rank_00_000/model_optim_rng.pt")
    with pytest.raises(MismatchError, match=r"refused; it asks for `(posix|nt)\.system`"):
        inspect_base(folder.parent)
    assert not target.exists()


@pytest.mark.parametrize("rank", ["mp_rank_00_000", "mp_rank_01_000"])
def test_truncated_file(rank, folder):
    path = folder / rank / "model_optim_rng.pt"
    os.truncate(path, path.stat().st_size - 1000)
    with pytest.raises(MismatchError, match="truncated") as caught:
        inspect_base(folder.parent)
    assert str(path) in str(caught.value)


def test_damage_in_the_middle_of_a_file(folder):
    path = folder / "mp_rank_01_000/model_optim_rng.pt"
    content = bytearray(path.read_bytes())
    start = content.index(b"language_model") - 20
    content[start : start + 60] = bytes(60)
    path.write_bytes(content)
    with pytest.raises(MismatchError, match="mp_rank_01_000"):
        open_megatron(folder.parent)


def test_missing_rank(folder):
    (folder / "mp_rank_01_001/model_optim_rng.pt").unlink()
    with pytest.raises(MismatchError, match="1 of 4 ranks are missing: mp_rank_01_001"):
        inspect_base(folder.parent)


def test_missing_first_rank(folder):
    (folder / "mp_rank_00_000/model_optim_rng.pt").unlink()
    with pytest.raises(MismatchError, match="the file of rank 0"):
        inspect_base(folder.parent)


def test_ranks_of_two_checkpoints(folder):
    (folder / "mp_rank_02_000").mkdir()
    torch.save({}, folder / "mp_rank_02_000/model_optim_rng.pt")
    with pytest.raises(MismatchError, match="there are also mp_rank_02_000"):
        inspect_base(folder.parent)


def test_old_version(folder):
    path = folder / "mp_rank_00_000/model_optim_rng.pt"
    content = torch.load(path, weights_only=False)
    torch.save({**content, "checkpoint_version": 2.0}, path)
    with pytest.raises(MismatchError, match=r"checkpoint_version is 2\.0"):
        inspect_base(folder.parent)


def test_name_and_ranks_disagree(folder):
    root = folder.parent.rename(folder.parent.with_name("llama2-7b-tp4-pp1"))
    with pytest.raises(MismatchError, match="the name says tp=4 pp=1, but the ranks inside are tp=2 pp=2"):
        inspect_base(root)


@pytest.mark.parametrize("word", ["0", "latest", "-3"])
def test_wrong_tracker(word, folder):
    (folder.parent / "latest_checkpointed_iteration.txt").write_text(word)
    with pytest.raises(MismatchError, match="expected a number above 0 or `release`"):
        inspect_base(folder.parent)


def test_no_tracker(folder):
    (folder.parent / "latest_checkpointed_iteration.txt").unlink()
    with pytest.raises(MismatchError, match=r"no latest_checkpointed_iteration\.txt"):
        inspect_base(folder.parent)
    assert inspect_base(folder.parent, 800).iteration == 800


def test_iteration_that_is_not_there(folder):
    with pytest.raises(MismatchError, match="there is no iter_0000700 in it") as caught:
        open_megatron(folder.parent, 700)
    assert "iter_0000800" in caught.value.hint


def test_missing_and_misshapen_tensors(folder):
    path = folder / "mp_rank_01_001/model_optim_rng.pt"
    content = torch.load(path, weights_only=False)
    body = content["model"]["language_model"]["encoder"]
    weight = body.pop("layers.1.mlp.dense_4h_to_h.weight")
    torch.save(content, path)
    with pytest.raises(MismatchError, match=r"layer 3 mlp\.dense_4h_to_h\.weight is on 1 of 2 tensor ranks"):
        open_megatron(folder.parent)
    body["layers.1.mlp.dense_4h_to_h.weight"] = weight[:, 1:].clone()
    torch.save(content, path)
    with pytest.raises(MismatchError, match=r"layer 3 mlp\.dense_4h_to_h\.weight is \[64, 55\] on a rank"):
        open_megatron(folder.parent)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"model_name": "falcon"}, "`falcon` model"),
        ({"glu_activation": None}, "glu_activation=None"),
        ({"use_rms_norm": False}, "use_rms_norm=False"),
        ({"tie_embed_logits": True}, "tie_embed_logits=True"),
        ({"use_bias": True}, "use_bias=True"),
    ],
)
def test_other_architectures(args, message, tmp_path):
    formulas.write_folder(tmp_path, formulas.random_weights(SIZES), SIZES, **args)
    with pytest.raises(MismatchError, match=message):
        inspect_base(tmp_path)


def test_constants_that_resharding_reset(tmp_path):
    weights = formulas.random_weights(SIZES)
    for name, eps, theta in (("llama", 1e-6, 1e4), ("llama2", 1e-5, 1e4), ("codellama", 1e-5, 1e6)):
        formulas.write_folder(tmp_path / name, weights, SIZES, model_name=name)
        source = open_megatron(tmp_path / name)
        assert (source.config.norm_eps, source.config.rope_theta) == (eps, theta)
        assert len(source.warnings) == (name != "llama2")
    assert "norm_eps is 1e-05 in the saved arguments, but llama has 1e-06" in open_megatron(tmp_path / "llama").warnings[0]
    kept = open_folder(tmp_path / "llama", norm_eps=1e-5)
    assert (kept.config.norm_eps, kept.warnings) == (1e-5, ())


def test_converter_files_are_believed(tmp_path):
    weights = formulas.random_weights(SIZES)
    formulas.write_folder(
        tmp_path, weights, SIZES, style="converter", layernorm_epsilon=1e-6, rope_theta=1e6, rope_scaling_factor=2.0
    )
    config = inspect_base(tmp_path).config
    assert (config.norm_eps, config.rope_theta, config.rope_scaling) == (1e-6, 1e6, {"rope_type": "linear", "factor": 2.0})


def test_mistral(tmp_path):
    weights = formulas.random_weights(SIZES)
    formulas.write_folder(tmp_path, weights, SIZES, model_name="mistral", sliding_window_size=4096)
    config = inspect_base(tmp_path).config
    assert (config.family, config.sliding_window) == ("mistral", 4096)


def test_nothing_is_written_when_the_layout_does_not_fit(tmp_path):
    formulas.write_folder(tmp_path / "m", formulas.random_weights(SIZES), SIZES)
    source = open_megatron(tmp_path / "m")
    for tp, pp, message in ((4, 1, "2 key/value heads"), (1, 3, "4 layers")):
        with pytest.raises(MismatchError, match=message):
            write_megatron(tmp_path / "out", source, tp=tp, pp=pp, dtype=torch.float32)
    assert not (tmp_path / "out").exists()


def test_a_name_that_would_be_wrong_is_not_written(folder, tmp_path):
    with pytest.raises(MismatchError, match="the name says tp=4 pp=1, but tp=2 pp=1"):
        write_megatron(tmp_path / "out-tp4-pp1", open_megatron(folder.parent), tp=2, pp=1, dtype=torch.float32)
    assert not (tmp_path / "out-tp4-pp1").exists()


def test_an_existing_iteration_is_not_overwritten(folder):
    source = open_megatron(folder.parent)
    with pytest.raises(MismatchError, match="exists already"):
        write_megatron(folder.parent, source, tp=2, pp=2, dtype=torch.float32, iteration=800)


def test_a_failure_while_writing_leaves_nothing(folder, tmp_path):
    source = open_megatron(folder.parent)

    class Failing:
        def __getattr__(self, name):
            return getattr(source, name)

        def read(self, name, slices=None):
            if "layers.2" in name:
                raise OSError("disk on fire")
            return source.read(name, slices)

    with pytest.raises(OSError, match="disk on fire"):
        write_megatron(tmp_path / "out", Failing(), tp=1, pp=2, dtype=torch.float32)
    assert not (tmp_path / "out").exists()
