"""Folder names of the original, by which its users find their runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medsft.core.config.run_config import RunConfig
from medsft.core.models.config import ModelConfig, from_hf_config
from medsft.core.planning.folders import (
    export_folder_name,
    family_in_names,
    family_name,
    free_bytes,
    run_folder,
    run_folder_name,
)
from medsft.core.planning.layout import Layout


def config(**changes: Any) -> RunConfig:
    return RunConfig(**{"checkpoint": "baseline", "run_name": "pubmedqa", **changes})


@pytest.mark.parametrize(
    ("changes", "suffix"),
    [
        ({}, ""),
        ({"intermediate_iter": 800}, "-it0000800"),
        ({"epochs": 1.0}, "-ep1"),
        ({"epochs": 0.5}, "-ep0.5"),
        ({"seq": 4096}, "-seq4096"),
        ({"loss_mask": 0.1}, "-loss0.1"),
        ({"loss_mask": 1.0}, "-loss1.0"),
        ({"id": "again"}, "-again"),
        (
            {"intermediate_iter": 5, "epochs": 2.0, "seq": 512, "loss_mask": 0.5, "id": "b"},
            "-it0000005-ep2-seq512-loss0.5-b",
        ),
        ({"adapter": "lora", "lora_rank": 8, "id": "b"}, "-lora-b"),
        ({"lr": 1e-4, "micro_batch": 8, "global_batch": 32}, ""),
    ],
)
def test_names(changes, suffix):
    run = config(**changes)
    assert run_folder_name(run, "llama-2", Layout(tp=4, pp=2)) == f"llama-2-7b-tp4-pp2-baseline-pubmedqa{suffix}"
    assert export_folder_name(run, "llama-2") == f"llama-2-7b-hf-baseline-pubmedqa{suffix}"


def test_a_size_below_one():
    assert run_folder_name(config(size=0.135), "llama", Layout()) == "llama-0.135b-tp1-pp1-baseline-pubmedqa"


def test_a_run_at_other_levels_is_the_same_run(tmp_path: Path):
    here = config(save_checkpoint_dir=tmp_path)
    first = run_folder(here, "llama-2", Layout(tp=2))
    assert first == tmp_path / "llama-2-7b-tp2-pp1-baseline-pubmedqa"
    first.mkdir()
    (first / "plan.json").touch()
    assert run_folder(here, "llama-2", Layout(pp=2)) == first
    other = config(save_checkpoint_dir=tmp_path, id="b")
    assert run_folder(other, "llama-2", Layout(pp=2)).name == "llama-2-7b-tp1-pp2-baseline-pubmedqa-b"


def test_free_bytes_of_a_folder_to_come(tmp_path: Path):
    assert free_bytes(tmp_path / "not" / "there") > 0


LLAMA_2 = {"num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}
LLAMA_3 = {**LLAMA_2, "intermediate_size": 14336, "num_key_value_heads": 8, "rope_theta": 500000.0, "vocab_size": 128256}
SMOL = {"num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9}


def model(**raw: Any) -> ModelConfig:
    return from_hf_config({"model_type": "llama", "vocab_size": 32000, "rms_norm_eps": 1e-5, **raw}, where="config.json")


@pytest.mark.parametrize(
    ("described", "family"),
    [
        (model(**LLAMA_2), "llama-2"),
        (model(**LLAMA_2, vocab_size=32017), "llama-2"),  # meditron
        (model(**LLAMA_2, rms_norm_eps=1e-6), "llama"),  # Llama 1
        (model(**LLAMA_2, rope_theta=1e6, vocab_size=32016), "llama"),  # CodeLlama
        (model(**LLAMA_3), "llama"),
        (model(**SMOL, num_key_value_heads=3, vocab_size=49152), "llama"),
        (model(**LLAMA_2, model_type="mistral"), "mistral"),
    ],
)
def test_only_llama_2_is_called_so(described: ModelConfig, family: str):
    assert family_name(described) == family
    assert family_name(model(**SMOL, num_key_value_heads=3), saved_as="llama2") == "llama-2"


@pytest.mark.parametrize(
    "made", ["llama-2-7b-tp2-pp1-baseline-pubmedqa/plan.json", "llama-2-7b-hf-baseline-pubmedqa/config.json"]
)
def test_what_version_0_1_0_made_is_found_under_its_name(tmp_path: Path, made: str):
    here = config(save_checkpoint_dir=tmp_path)
    assert family_in_names(here, model(**LLAMA_3)) == "llama"
    (tmp_path / made).parent.mkdir()
    (tmp_path / made).touch()
    assert family_in_names(here, model(**LLAMA_3)) == "llama-2"
    assert family_in_names(config(save_checkpoint_dir=tmp_path, id="b"), model(**LLAMA_3)) == "llama"
    (tmp_path / "llama-7b-tp1-pp1-baseline-pubmedqa").mkdir()
    (tmp_path / "llama-7b-tp1-pp1-baseline-pubmedqa" / "plan.json").touch()
    assert family_in_names(here, model(**LLAMA_3)) == "llama"
