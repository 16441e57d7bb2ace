"""The options of an adapter: their checks, and the defaults that change with `--adapter`."""

from __future__ import annotations

import pickle
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medsft.core.config.check import check, doubts
from medsft.core.config.command import command_line
from medsft.core.config.file import load_toml, save_toml
from medsft.core.config.lora import ATTENTION, TARGETS, LoraSpec
from medsft.core.config.run_config import RunConfig, from_mapping, to_mapping
from medsft.core.models.config import from_hf_config

FULL = RunConfig(run_name="r")
LORA = replace(FULL, adapter="lora")


def rates(config: RunConfig) -> tuple[float, float, float]:
    return config.lr, config.min_lr, config.weight_decay


def test_rates_that_are_not_given_follow_from_the_adapter() -> None:
    assert rates(FULL) == (2e-5, 2e-6, 0.1)
    assert rates(LORA) == (2e-4, 2e-5, 0.0)
    assert rates(replace(LORA, adapter="none")) == rates(FULL)
    assert rates(from_mapping({"adapter": "lora"}, base=FULL)) == rates(LORA)
    assert check(FULL) == check(LORA) == []


@pytest.mark.parametrize("given", [2e-5, 3e-4, 2e-4])
def test_a_rate_that_is_given_stays(given: float, tmp_path: Path) -> None:
    full = replace(FULL, lr=given)
    lora = replace(full, adapter="lora")
    assert full.lr == lora.lr == replace(lora, adapter="none").lr == given
    for config in (full, lora):
        values = dict(zip(*[iter(shlex.split(command_line(config))[2:])] * 2, strict=True))
        assert from_mapping({name.removeprefix("--"): value for name, value in values.items()}) == config
        save_toml(config, tmp_path / f"{config.adapter}.toml")
        assert load_toml(tmp_path / f"{config.adapter}.toml") == config
        assert replace(load_toml(tmp_path / f"{config.adapter}.toml"), adapter="lora").lr == given


def test_numbers_that_nobody_gave_are_shown_in_a_toml_and_change_with_the_adapter(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    save_toml(FULL, file)
    text = file.read_text()
    assert "# Peak learning rate (with an adapter 0.0002)\n# lr = 2e-05\n" in text
    assert rates(replace(load_toml(file), adapter="lora")) == rates(LORA)
    save_toml(load_toml(file), file)
    assert file.read_text() == text
    assert "--lr" not in command_line(LORA)
    assert "--weight_decay" not in command_line(LORA)
    assert to_mapping(LORA)["lr"] == 2e-4
    assert type(to_mapping(LORA)["lr"]) is float
    assert pickle.loads(pickle.dumps(LORA)) == LORA


def test_what_is_trained() -> None:
    assert FULL.lora is None
    assert LORA.lora == LoraSpec(rank=16, alpha=32.0, targets=TARGETS)
    some = replace(LORA, lora_rank=8, lora_alpha=4, lora_targets="v_proj, q_proj", rslora=True)
    assert some.lora == LoraSpec(rank=8, alpha=4.0, targets=("q_proj", "v_proj"), rslora=True)
    assert replace(LORA, lora_targets="attention").lora == LoraSpec(rank=16, alpha=32.0, targets=ATTENTION)
    for several in ("attention,down_proj", "down_proj, attention, q_proj"):
        assert check(replace(LORA, lora_targets=several)) == []
        assert replace(LORA, lora_targets=several).lora == LoraSpec(rank=16, alpha=32.0, targets=(*ATTENTION, "down_proj"))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_every_target_is_in_every_family(family: str) -> None:
    sizes = {"vocab_size": 10, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = from_hf_config({"model_type": family, **sizes}, where="config.json")
    for target in TARGETS:
        assert len(list(LoraSpec(rank=2, alpha=4, targets=(target,)).shapes(model))) == 2


@pytest.mark.parametrize(
    ("values", "flag", "words"),
    [
        ({"lora_targets": "q_proj,qkv_proj"}, "--lora_targets", "These models have q_proj, k_proj and v_proj."),
        ({"lora_targets": "q_proj,v_prj"}, "--lora_targets", "Did you mean `v_proj`?"),
        ({"lora_targets": "all-linear"}, "--lora_targets", "All linear layers are `all`."),
        ({"lora_targets": ""}, "--lora_targets", "matches no linear layer"),
        ({"lora_targets": "Q_PROJ"}, "--lora_targets", "Did you mean `q_proj`?"),
        ({"lora_targets": "model.layers.0.mlp.up_proj"}, "--lora_targets", "Did you mean `up_proj`?"),
        ({"lora_targets": "model.lm_head"}, "--lora_targets", "Rows of new tokens are trained anyway"),
        ({"lora_targets": "lm_head"}, "--lora_targets", "Rows of new tokens are trained anyway"),
        ({"lora_rank": 0}, "--lora_rank", "too small"),
        ({"lora_alpha": 0.0}, "--lora_alpha", "too small"),
        ({"adapter": "qlora"}, "--adapter", "--adapter lora --base_precision nf4"),
        ({"adapter": "dora"}, "--adapter", "Only `lora` is offered"),
        ({"base_precision": "int8"}, "--base_precision", "take bf16, or nf4"),
        ({"export": "none"}, "--export", "is not one of merged, adapter, both"),
        ({"compat": "megatron-llm"}, "--adapter", "the original trains all weights"),
        *(
            ({"adapter": "none", **changed}, f"--{next(iter(changed))}", "is used only with --adapter lora")
            for changed in ({"lora_rank": 8}, {"base_precision": "nf4"}, {"rslora": True}, {"export": "merged"})
        ),
    ],
)
def test_each_problem_names_its_flag(values: dict[str, Any], flag: str, words: str) -> None:
    [problem] = check(replace(LORA, **values))
    assert problem.where == flag
    assert words in str(problem)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (replace(LORA, lr=2e-5, min_lr=0.0), "unusually low: adapters mostly use 1e-4 to 5e-4"),
        (replace(LORA, lr=1e-2), "unusually high: adapters"),
        (LORA, ""),
        (replace(LORA, lr=2e-3), ""),
    ],
)
def test_rates_far_from_those_of_adapters_are_doubted(config: RunConfig, words: str) -> None:
    assert words in "".join(doubts(config))
    assert bool(words) is bool(doubts(config))
