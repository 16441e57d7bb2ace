"""Adapters on disk: what is read of them, and what is refused by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from adapters import write_peft

from medsft.core.config.lora import TARGETS, LoraSpec
from medsft.core.models.adapter_folder import check_fits, is_adapter, read_adapter
from medsft.core.models.config import read_hf_config
from medsft.errors import MismatchError

EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
TABLE = "base_model.model.{}.weight"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny.write_base(tmp_path / "base")


@pytest.mark.parametrize("spelled", [["v_proj", "q_proj"], r".*\.(q_proj|v_proj)$", "all-linear"])
def test_targets_are_those_that_have_tensors(base, tmp_path, spelled):
    folder = write_peft(tmp_path / "a", base, target_modules=spelled, use_rslora=True, lora_dropout=0.1)
    assert is_adapter(folder)
    adapter = read_adapter(folder)
    assert adapter.lora == LoraSpec(rank=4, alpha=8.0, targets=("q_proj", "v_proj"), rslora=True)
    assert adapter.base == str(base)
    assert (adapter.rows, adapter.tables, adapter.base_fingerprint, adapter.tokenizer) == ({}, (), "", None)
    model = read_hf_config(base)
    assert {name: tensor.shape for name, tensor in adapter.tensors.items()} == dict(adapter.lora.shapes(model))
    check_fits(adapter, model, where="base")
    assert adapter.vocab_size(model) == model.vocab_size


def test_rows_and_tables(base, tmp_path):
    model = read_hf_config(base)
    rows = {"embed_tokens": [3, 84, 85], "lm_head": [84]}
    adapter = read_adapter(write_peft(tmp_path / "rows", base, targets=TARGETS, rows=rows))
    assert adapter.lora.targets == TARGETS
    assert adapter.rows == {EMBEDDING: (3, 84, 85), OUTPUT: (84,)}
    assert adapter.vocab_size(model) == 86
    check_fits(adapter, model, where="base")
    whole = {TABLE.format(name): ("BF16", (90, model.hidden_size)) for name in ("model.embed_tokens", "lm_head")}
    saved = read_adapter(write_peft(tmp_path / "whole", base, more=whole, modules_to_save=["embed_tokens", "lm_head"]))
    assert saved.tables == (EMBEDDING, OUTPUT)
    assert saved.vocab_size(model) == 90
    check_fits(saved, model, where="base")
    listed = read_adapter(write_peft(tmp_path / "list", base, rows={"embed_tokens": [5]}, trainable_token_indices=[5]))
    assert listed.rows == {EMBEDDING: (5,)}


PAIR = "base_model.model.{}.lora_A.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "the kind IA3"),
        ({"peft_type": 3}, "`peft_type` is 3"),
        ({"task_type": "SEQ_CLS"}, "an adapter for SEQ_CLS"),
        ({"use_dora": True}, "a DoRA adapter"),
        ({"use_newest": True}, "a variant of LoRA .`use_newest`"),
        ({"bias": "all"}, "it trained biases"),
        ({"lora_bias": True}, "a LoRA with biases"),
        ({"layers_to_transform": [0]}, "some layers only"),
        ({"layer_replication": [[0, 2]]}, "repeats layers"),
        ({"target_parameters": ["experts"]}, "no linear layers"),
        ({"init_lora_weights": "pissa_niter_4"}, 'trained from "pissa_niter_4"'),
        ({"modules_to_save": ["model.norm"]}, 'whole modules .*"model.norm"'),
        ({"rank_pattern": {"q_proj": 8}}, "`rank_pattern` gives"),
        ({"alpha_pattern": {"q_proj": 9}}, "`alpha_pattern` gives"),
        ({"r": "8"}, "`r` is"),
        ({"lora_alpha": None}, "`lora_alpha` is null"),
        ({"trainable_token_indices": [5]}, "does not fit the rows"),
        ({"rows": {"embed_tokens": [5]}, "trainable_token_indices": {"embed_tokens": [5, 6]}}, "does not fit the rows"),
        ({"rows": {"embed_tokens": [5]}, "trainable_token_indices": None}, "does not fit the rows"),
        ({"rows": {"embed_tokens": [5]}, "trainable_token_indices": {"embed_tokens": ["x"]}}, "must hold ids"),
        ({"trainable_token_indices": {"wte": [5]}}, "must hold ids"),
        ({"without": "layers.1.self_attn.q_proj.lora_B"}, "layers.1.*q_proj.lora_B.weight is not there"),
        ({"targets": ()}, "no lora_A and lora_B"),
        ({"more": {PAIR.format("lm_head"): ("F32", (4, 32))}}, "an adapter of a table"),
        ({"more": {PAIR.format("model.vision.fc1"): ("F32", (4, 32))}}, "not a matrix of LoRA"),
        ({"more": {"base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector": ("F32", (32,))}}, "a DoRA"),
        ({"more": {"base_model.model.model.layers.0.self_attn.q_proj.bias": ("F32", (32,))}}, "which is a bias"),
    ],
)
def test_what_is_not_plain_lora_is_refused_by_name(base, tmp_path, changes, message):
    folder = write_peft(tmp_path / "a", base, **changes)
    with pytest.raises(MismatchError, match=f"(?s){message}") as caught:
        read_adapter(folder)
    assert str(folder) in str(caught.value)


def test_patterns_that_say_nothing_new_and_starts_that_keep_the_base(base, tmp_path):
    same: dict[str, Any] = {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"v_proj": 8}, "init_lora_weights": "gaussian"}
    assert read_adapter(write_peft(tmp_path / "a", base, **same)).lora.rank == 4


@pytest.mark.parametrize(
    ("changes", "model", "message"),
    [
        ({}, {"hidden_size": 64}, "another base than base: .*q_proj.lora_A.weight is"),
        ({}, {"num_hidden_layers": 5}, "is missing, for the base"),
        ({}, {"num_hidden_layers": 3}, "has no place for"),
        ({"rank": 5, "r": 4}, {}, "lora_A.weight is .5, 32., for the base it would be .4, 32."),
        ({"rows": {"lm_head": [5]}}, {"tie_word_embeddings": True}, "changes one of two tables"),
        ({"rows": {"embed_tokens": [-1]}}, {}, "numbers that are no tokens"),
        ({"rows": {"embed_tokens": [1 << 40]}}, {}, "numbers that are no tokens"),
        ({"more": {TABLE.format("lm_head"): ("F32", (90, 32))}}, {}, "its tables have 84 and 90 rows"),
        ({"more": {TABLE.format("lm_head"): ("F32", (84, 32))}}, {"tie_word_embeddings": True}, "changes one of two"),
    ],
)
def test_an_adapter_of_another_base_is_refused(base, tmp_path, changes, model, message):
    adapter = read_adapter(write_peft(tmp_path / "a", base, **changes))
    other = read_hf_config(tiny.write_base(tmp_path / "other", weights=False, **model))
    with pytest.raises(MismatchError, match=f"(?s){message}"):
        check_fits(adapter, other, where="base")


def test_folders_that_are_none(base, tmp_path):
    with pytest.raises(MismatchError, match=r"no adapter_config\.json"):
        read_adapter(base)
    assert not is_adapter(base)
    folder = write_peft(tmp_path / "run-hf" / "adapter", base)
    with pytest.raises(MismatchError, match=f"Did you mean {folder}"):
        read_adapter(folder.parent)
    for inside in ("adapter_model.safetensors", "adapter_config.json"):
        with pytest.raises(MismatchError, match=rf"a file; an adapter is a folder\.\n.*: {folder}$"):
            read_adapter(folder / inside)
    with pytest.raises(MismatchError, match="nowhere: no such file or folder"):
        read_adapter(tmp_path / "nowhere")
    run = tmp_path / "run"
    (run / "iter_0000004").mkdir(parents=True)
    (run / "plan.json").write_text("{}")
    for part in (run, run / "iter_0000004"):
        with pytest.raises(MismatchError, match=f"(?s)no adapter_config.json there.*medsft export {run} --to DIR"):
            read_adapter(part)
    (folder / "adapter_model.safetensors").write_bytes(b"short")
    with pytest.raises(MismatchError, match="cut short"):
        read_adapter(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(MismatchError, match=r"no adapter_model\.safetensors beside"):
        read_adapter(folder)
    tiny.write_base(folder)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    assert not is_adapter(folder), "a whole model with an adapter beside it is that model"
