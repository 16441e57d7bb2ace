"""RunConfig: conversion, checks, TOML and the command line, each the inverse of another."""

from __future__ import annotations

import math
import shlex
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medsft.cli.argv import normalize
from medsft.core.config.check import check
from medsft.core.config.command import command_line
from medsft.core.config.file import load_toml, save_toml
from medsft.core.config.options import field_types
from medsft.core.config.run_config import GROUPS, RunConfig, from_mapping, to_mapping
from medsft.errors import ConfigError

GOOD = RunConfig(run_name="pubmedqa")
FLOATS = [name for name, (kind, _, _) in field_types(RunConfig).items() if kind is float]


def test_every_field_is_described_and_the_defaults_pass() -> None:
    for f in fields(RunConfig):
        assert f.metadata["help"]
        assert f.metadata["group"] in GROUPS
    assert check(GOOD) == []


@pytest.mark.parametrize(
    ("name", "default"),
    [
        *(("checkpoint", "baseline"), ("size", 7), ("epochs", 3), ("question_key", "prompt"), ("answer_key", "gold")),
        *(("system_key", None), ("seq", 2048), ("rank", 0), ("nodes", 1), ("addr", None), ("loss_mask", 0.0), ("id", None)),
        *(("save_interval", 800), ("intermediate_iter", None), ("tp", None), ("pp", None), ("global_batch", 64), ("lr", 2e-5)),
        *(("min_lr", 2e-6), ("warmup_fraction", 0.1), ("weight_decay", 0.1), ("adam_beta2", 0.95), ("adam_eps", 1e-5)),
        *(("clip_grad", 1.0), ("seed", 1234), ("eval_interval", None), ("template", "meditron"), ("truncate", "error")),
    ],
)
def test_defaults_are_those_of_the_recipe(name: str, default: object) -> None:
    assert getattr(RunConfig(), name) == default


@pytest.mark.parametrize(
    ("values", "flag", "words"),
    [
        ({"loss_mask": 1.5}, "--loss_mask", "too large"),
        ({"loss_mask": -0.1}, "--loss_mask", "too small"),
        ({"epochs": 0.0}, "--epochs", "too small"),
        ({"template": "chatlm"}, "--template", "Did you mean `chatml`?"),
        ({"run_name": ""}, "--run_name", "a name is needed"),
        ({"run_name": "a/b"}, "--run_name", "folder name"),
        ({"id": "x-tp2-pp1"}, "--id", "tpN-ppN"),
        ({"min_lr": 1.0}, "--min_lr", "above --lr"),
        ({"nodes": 2}, "--addr", "needed"),
        ({"rank": 1}, "--rank", "not below"),
        ({"port": 70000}, "--port", "too large"),
        ({"adam_beta1": 1.0}, "--adam_beta1", "too large"),
        ({"adam_beta2": 1.0}, "--adam_beta2", "too large"),
        ({"adam_eps": 0.0}, "--adam_eps", "too small"),
        *(({name: value}, f"--{name}", "not a finite number") for name in FLOATS for value in (math.nan, math.inf, -math.inf)),
        ({"size": 1e7}, "--size", "too large"),
        ({"seq": 10**400}, "--seq", "too large"),
        ({"iters": 10**10}, "--iters", "Must be 1000000000 or less"),
        ({"nproc_per_node": 10**9}, "--nproc_per_node", "Must be 1024 or less"),
        ({"seed": 2**64}, "--seed", "too large"),
        ({"seed": 2**32, "compat": "megatron-llm"}, "--seed", "too large with --compat"),
        ({"optimizer": "adamw8bit", "compat": "megatron-llm"}, "--optimizer", "the original keeps weights and moments in fp32"),
        ({"optimizer": "paged_adamw_8bit"}, "--optimizer", "AdamW with moments in 8 bits is `adamw8bit`."),
        ({"optimizer": "adafactor"}, "--optimizer", "`adamw8bit` takes less memory"),
    ],
)
def test_each_problem_names_its_flag(values: dict[str, Any], flag: str, words: str) -> None:
    problems = check(replace(GOOD, **values))
    assert [problem.where for problem in problems] == [flag]
    assert words in str(problems[0])


def test_all_problems_are_reported_at_once() -> None:
    bad = replace(GOOD, loss_mask=2.0, template="x", seq=1, run_name="")
    assert {problem.where for problem in check(bad)} == {"--loss_mask", "--template", "--seq", "--run_name"}
    with pytest.raises(ConfigError) as caught:
        from_mapping({"sez": 1, "epochs": "many", "tp": 1.5, "retokenize": "yes", "run_name": 3})
    assert {problem.where for problem in caught.value.problems} == {"--sez", "--epochs", "--tp", "--retokenize", "--run_name"}
    assert "Did you mean `seq`?" in str(caught.value)


def test_toml_names_file_section_and_entry(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    with pytest.raises(ConfigError, match=r"--config: .* does not exist"):
        load_toml(file)
    file.write_text("[trainng]\nlr = 1\n")
    with pytest.raises(ConfigError, match=r"\[trainng\]: there is no such section\n.*Did you mean `training`"):
        load_toml(file)
    file.write_text("[training]\nlearning_rate = 1\n")
    with pytest.raises(ConfigError, match="learning_rate: there is no such option"):
        load_toml(file)
    file.write_text("[training\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_toml(file)


def test_saving_keeps_comments_and_order(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('# ours\n[training]\nlr = 1e-4  # found by a sweep\n[data]\nrun_name = "old"\n')
    save_toml(replace(load_toml(file), run_name="new", data=(Path("a.jsonl"),)), file)
    text = file.read_text()
    assert text.startswith("# ours\n[training]\nlr = 1e-4  # found by a sweep\n")
    assert load_toml(file) == RunConfig(run_name="new", lr=1e-4, data=(Path("a.jsonl"),))
    save_toml(RunConfig(run_name="new"), file)
    assert load_toml(file) == RunConfig(run_name="new")


def test_a_new_file_says_where_its_paths_begin(tmp_path: Path) -> None:
    save_toml(RunConfig(run_name="r"), tmp_path / "run.toml")
    head = (tmp_path / "run.toml").read_text().split("[base]")[0]
    assert "Relative paths begin at the folder in which medsft is started" in head
    assert all(not line or line.startswith("#") for line in head.splitlines())


_TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=0x24F), min_size=1).filter(lambda s: not s.startswith("-"))
_PATHS = _TEXT.filter(lambda s: "/" not in s and not s.startswith("~")).map(Path)
_VALUES = {int: st.integers(-5, 10**9), float: st.floats(allow_nan=False, allow_infinity=False), bool: st.booleans()}


@st.composite
def configs(draw: st.DrawFn) -> RunConfig:
    values = {}
    for name, (kind, optional, is_list) in field_types(RunConfig).items():
        value: st.SearchStrategy[Any] = _VALUES.get(kind, _PATHS if kind is Path else _TEXT)
        if is_list:
            value = st.lists(value, min_size=1, max_size=3).map(tuple)
        values[name] = draw(st.none() | value if optional else value)
    return RunConfig(**{name: value for name, value in values.items() if draw(st.booleans())})


@given(configs())
def test_mapping_and_toml_are_inverse(tmp_path_factory: pytest.TempPathFactory, config: RunConfig) -> None:
    assert from_mapping(to_mapping(config)) == config
    file = tmp_path_factory.mktemp("toml") / "run.toml"
    save_toml(config, file)
    assert load_toml(file) == config


@given(configs())
def test_the_command_line_asks_for_the_same_run(config: RunConfig) -> None:
    words = normalize(shlex.split(command_line(config)))[2:]
    given: dict[str, object] = {}
    while words:
        name = words.pop(0).removeprefix("--")
        kind, _, is_list = field_types(RunConfig)[name]
        if kind is bool:
            given[name] = True
        elif is_list:
            given[name] = [*given.get(name, []), words.pop(0)]  # type: ignore[misc]
        else:
            given[name] = words.pop(0)
    assert from_mapping(given) == config


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("data", 5, "must be a list, not 5"),
        ("data", [5], "must be text, not 5"),
        ("data", {"a": 1}, "must be a list"),
        ("data", "", "this one is empty"),
        ("save_checkpoint_dir", "", "this one is empty"),
        ("epochs", True, "must be a number, not True"),
        ("iters", True, "must be a whole number, not True"),
        ("lr", [1], "must be a number, not"),
        ("run_name", 5, "must be text, not 5"),
    ],
)
def test_a_value_of_a_wrong_kind_is_named_in_our_words(name: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_mapping({name: value}, where="run.toml")
    assert str(caught.value).startswith(f"run.toml: {name}: ")
    assert message in str(caught.value)


def test_shares_in_toml_and_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('[data]\nrun_name = "x"\ndata = ["a.jsonl:0.3", "b b.jsonl"]\nval = 0.05\ngroup_key = "of.patient"\n')
    config = load_toml(file)
    assert (config.data_files, config.shares) == ((Path("a.jsonl"), Path("b b.jsonl")), (0.3, 1))
    assert (config.val_files, config.val_share, check(config)) == ((), 0.05, [])
    assert "--data a.jsonl:0.3 'b b.jsonl' --val 0.05 --group_key of.patient" in command_line(config)
    save_toml(config, file)
    assert load_toml(file) == config
    plain = from_mapping({"data": ["a:b.jsonl", "c.jsonl:x", "d.jsonl:"], "val": ["0.05.jsonl"]})
    assert (plain.data_files, plain.shares, plain.val_files, plain.val_share) == (plain.data, (), plain.val, None)


def test_a_path_that_exists_as_it_stands_has_no_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("day:2").write_text("")
    config = from_mapping({"data": ["day:2", "day:2:0.5", "day:3", "x" * 300 + ":2"]})
    assert [str(path) for path in config.data_files] == ["day:2", "day:2", "day", "x" * 300]
    assert config.shares == (1, 0.5, 3, 2)
