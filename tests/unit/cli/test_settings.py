"""Base models that are added without a tokenizer or with a damaged one, and searches that find none."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from typer.testing import CliRunner

from medsft.cli.app import app


def test_a_base_model_with_another_kind_of_tokenizer_is_added_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.plannable(tmp_path)
    (tmp_path / "base" / "tokenizer.json").rename(tmp_path / "base" / "tekken.json")
    added = CliRunner().invoke(app, ["checkpoints", "add", "mine", "3.6e-05", "base"])
    assert added.exit_code == 0
    assert "warning: base: no tokenizer beside the model: tekken.json is Mistral's own format" in added.stderr
    for command in ("plan", "tokenize"):
        words = [command, "--checkpoint", "mine", "--size", "3.6e-05", "--run_name", "r", "--data", "train.jsonl"]
        refused = CliRunner().invoke(app, words)
        assert refused.exit_code == 4
        assert "tekken.json is Mistral's own format" in refused.stderr
    other = tmp_path / "other"
    other.mkdir()
    tiny.write_tokenizer(other)
    named = CliRunner().invoke(app, ["checkpoints", "add", "mine", "3.6e-05", "base", "--tokenizer", "other"])
    assert (named.exit_code, "warning" in named.stderr) == (0, False)


def test_a_tokenizer_that_cannot_be_read_is_told_when_it_is_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.plannable(tmp_path)
    damaged = tmp_path / "base" / "tokenizer.json"
    damaged.write_bytes(damaged.read_bytes()[:100])
    beside = CliRunner().invoke(app, ["checkpoints", "add", "mine", "3.6e-05", "base"])
    assert beside.exit_code == 0
    assert "warning: base/tokenizer.json is not a valid tokenizer" in beside.stderr
    for wrong in ("base/tokenizer.json", "nowhere", "train.jsonl"):
        named = CliRunner().invoke(app, ["checkpoints", "add", "named", "3.6e-05", "base", "--tokenizer", wrong])
        assert named.exit_code == 3, wrong
    assert "named" not in (tmp_path / "medsft.toml").read_text()


def test_a_search_that_finds_nothing_says_so(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["checkpoints", "scan", str(tmp_path)])
    assert result.exit_code == 0
    assert "No base model that can be fine-tuned was found in" in result.stderr


def test_a_model_that_only_its_config_is_here_of_is_added_to_plan_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.plannable(tmp_path)
    for weights in (tmp_path / "base").glob("*.safetensors*"):
        weights.unlink()
    added = CliRunner().invoke(app, ["checkpoints", "add", "mine", "3.6e-05", "base"])
    said = "has a config.json and no weights: a plan can be made, a run cannot start"
    assert (added.exit_code, said in " ".join(added.stderr.split())) == (0, True)
    run = ["--checkpoint", "mine", "--size", "3.6e-05", "--run_name", "r", "--data", "train.jsonl"]
    planned = CliRunner().invoke(app, ["plan", *run])
    assert (planned.exit_code, said in " ".join((planned.stdout + planned.stderr).split())) == (0, True)
    assert CliRunner().invoke(app, ["sft", *run]).exit_code == 4


def test_weights_in_another_format_are_named_and_not_taken_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.plannable(tmp_path)
    for weights in (tmp_path / "base").glob("*.safetensors*"):
        weights.unlink()
    (tmp_path / "base" / "tf_model.h5").write_bytes(b"weights")
    refused = CliRunner().invoke(app, ["checkpoints", "add", "mine", "3.6e-05", "base"])
    assert refused.exit_code == 4
    assert "take the files in Hugging Face's format" in " ".join(refused.stderr.split())
