"""What is told of values that are allowed but odd, and of values that other tools know."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medsft.core.config.check import check, doubts
from medsft.core.config.file import load_toml
from medsft.core.config.run_config import RunConfig
from medsft.core.planning.folders import check_places
from medsft.core.planning.sets import training_set_or_guess
from medsft.errors import ConfigError


@pytest.mark.parametrize(("lr", "told"), [(2e-5, False), (1e-3, False), (1.0, True), (2e-3, True)])
def test_a_learning_rate_far_above_the_usual_is_doubted(lr: float, told: bool) -> None:
    assert bool(doubts(RunConfig(lr=lr))) is told
    assert all(f"--lr {lr:g}" in text and "5e-6 to 1e-4" in text for text in doubts(RunConfig(lr=lr)))


@pytest.mark.parametrize("value", ["fp16", "float16", "FP16"])
def test_half_precision_is_explained(value: str) -> None:
    [problem] = check(RunConfig(run_name="r", precision=value))
    assert "fp16 is not offered" in problem.hint
    assert "bf16 has the range of fp32" in problem.hint


@pytest.mark.parametrize("line", ["run_name = pubmedqa", "retokenize = True"])
def test_a_value_without_quotes_is_explained(tmp_path: Path, line: str) -> None:
    file = tmp_path / "run.toml"
    file.write_text(f"[data]\n{line}\n")
    with pytest.raises(ConfigError, match="at line 2") as caught:
        load_toml(file)
    assert "Text needs quotes" in caught.value.problems[0].hint


@pytest.mark.parametrize(
    ("made", "run_name", "words"),
    [
        ((), "", ""),
        (("a", "a-val"), "", "give its name with --run_name"),
        (("a",), "b", "There is no tokenized set in"),
    ],
)
def test_without_files_the_sets_that_exist_are_pointed_at(
    tmp_path: Path, made: tuple[str, ...], run_name: str, words: str
) -> None:
    for name in made:
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}-text.bin").touch()
    with pytest.raises(ConfigError, match="files of rows are needed") as caught:
        training_set_or_guess(RunConfig(tokenized_data_dir=tmp_path, run_name=run_name))
    assert words in caught.value.problems[0].hint
    assert words or not caught.value.problems[0].hint


def test_places_are_checked_before_a_run_has_a_name() -> None:
    """The wizard begins so."""
    assert check_places(RunConfig()) == []


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"data": ("x.jsonl",)}, "--data: must be a tuple of paths, not ('x.jsonl',)\n    Write (Path('x.jsonl'),)."),
        ({"data": [Path("x.jsonl")]}, "Write (Path('x.jsonl'),)."),
        ({"val": "x.jsonl"}, "--val: must be a tuple of paths, not 'x.jsonl'\n    Write (Path('x.jsonl'),)."),
        ({"tokenized_data_dir": "sets"}, "--tokenized_data_dir: must be a path, not 'sets'\n    Write Path('sets')."),
        ({"lr": "x", "epochs": None}, "--epochs: must be a number, not None\n--lr: must be a number, not 'x'"),
        ({"seed": True}, "--seed: must be a whole number, not True"),
        ({"seq": 8.0}, "--seq: must be a whole number, not 8.0"),
        ({"retokenize": 1}, "--retokenize: must be true or false, not 1"),
        ({"run_name": 3}, "--run_name: must be text, not 3"),
    ],
)
def test_code_that_gives_a_value_of_a_wrong_type_is_told_at_once(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(RunConfig(), **values)
    assert told in str(caught.value)


def test_a_whole_number_is_a_number() -> None:
    assert check(RunConfig(run_name="r", size=7, lr=2e-5, iters=None)) == []


@pytest.mark.parametrize(
    ("given", "where", "message", "hint"),
    [
        ({"eval_task": ("pubmedqa",)}, "--eval_task", "`pubmedqa` is not NAME=FILE", "pubmedqa=ori_pqal.json"),
        ({"eval_task": ("=x.jsonl",)}, "--eval_task", "is not NAME=FILE", ""),
        ({"eval_task": ("a b=x.jsonl",)}, "--eval_task", "is not NAME=FILE", ""),
        ({"eval_task": ("a=x.jsonl", "a=y.jsonl")}, "--eval_task", "`a` is given twice", ""),
        ({"eval_limit": 50}, "--eval_limit", "only with --eval_task", ""),
        ({"keep_best": "accuracy:a"}, "--keep_best", "`a` is not asked during training", "Add --eval_task a=FILE."),
        (
            {"keep_best": "accuracy:b", "eval_task": ("a=x.jsonl",)},
            "--keep_best",
            "`b` is not asked",
            "or take one that is: accuracy:a.",
        ),
        ({"keep_best": "accuracy:"}, "--keep_best", "is not asked", "--eval_task NAME=FILE"),
        ({"keep_best": "f1"}, "--keep_best", "`f1` is not a measure", "loss, none, or accuracy:NAME"),
        (
            {"keep_best": "accuracy:a", "eval_task": ("a=x",), "compat": "megatron-llm"},
            "--keep_best",
            "--compat megatron-llm",
            "",
        ),
    ],
)
def test_benchmarks_during_training(given: dict[str, Any], where: str, message: str, hint: str) -> None:
    [problem] = check(RunConfig(run_name="r", **given))
    assert problem.where == where
    assert message in problem.message
    assert hint in problem.hint
    assert not check(RunConfig(run_name="r", eval_task=("a=x=y.jsonl",), keep_best="accuracy:a", patience=2))
