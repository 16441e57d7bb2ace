"""Base models that are added without a tokenizer, and searches that find none."""

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
    named = CliRunner().invoke(app, ["checkpoints", "add", "mine", "3.6e-05", "base", "--tokenizer", "base/tekken.json"])
    assert "warning" not in named.stderr


def test_a_search_that_finds_nothing_says_so(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["checkpoints", "scan", str(tmp_path)])
    assert result.exit_code == 0
    assert "No base model that can be fine-tuned was found in" in result.stderr
