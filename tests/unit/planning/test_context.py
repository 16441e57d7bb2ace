"""Documents and the positions of the base model: what is longer than its context is an error, with the remedy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny

from medsft.core.config.run_config import RunConfig
from medsft.core.models.config import from_hf_config
from medsft.core.planning.planner import make_plan, replan
from medsft.core.run.rundir import RunDir
from medsft.core.settings import Settings
from medsft.core.workflow import tokenize_sets
from medsft.errors import ConfigError, MismatchError


def set_context(tmp_path: Path, **changes: Any) -> None:
    tiny.write_base(tmp_path / "base", tokenizer=False, **changes)


@pytest.fixture
def project(tmp_path: Path) -> tuple[RunConfig, Settings]:
    """40 tokenized documents, of which the longest has between 40 and 90 tokens."""
    config, settings = tiny.plannable(tmp_path, val=[])
    set_context(tmp_path, max_position_embeddings=512)
    tokenize_sets(config, settings)
    return config, settings


def test_a_document_longer_than_the_context_is_an_error_with_the_remedy(project, tmp_path):
    config, settings = project
    longest = make_plan(config, settings).train.longest - 1  # the last token takes no position
    set_context(tmp_path, max_position_embeddings=longest)
    assert "positions" not in "\n".join(make_plan(config, settings).warnings), "--seq 2048 is above it, but no document is"
    set_context(tmp_path, max_position_embeddings=longest - 1)
    with pytest.raises(ConfigError, match=f"takes {longest} positions, but the base model is made for {longest - 1}") as caught:
        make_plan(config, settings)
    assert f"--seq {longest - 1} with --truncate" in str(caught.value)
    assert make_plan(replace(config, seq=longest - 1, truncate="drop"), settings).train.longest - 1 < longest
    set_context(tmp_path, max_position_embeddings=longest // 2 + 1, rope_scaling={"type": "linear", "factor": 2.0})
    make_plan(config, settings)


def test_a_run_that_was_begun_may_end(project, tmp_path):
    config, settings = project
    plan = make_plan(config, settings)
    RunDir(Path(plan.run_dir)).create(plan.to_json())
    set_context(tmp_path, max_position_embeddings=16)
    again = make_plan(config, settings)
    assert "made for 16" in "\n".join(again.warnings)
    assert "made for 16" in "\n".join(replan(plan, run_dir=Path(plan.run_dir), changes={}).warnings)
    with pytest.raises(ConfigError, match="made for 16"):
        make_plan(replace(config, id="other"), settings)


def test_documents_that_are_not_tokenized_yet_are_warned_about(project, tmp_path):
    config, settings = project
    set_context(tmp_path, max_position_embeddings=64)
    ahead = make_plan(replace(config, run_name="later", seq=128), settings, ahead=True)
    assert "a document of more than 64 tokens is refused" in "\n".join(ahead.warnings)


def test_the_context_of_each_scaling():
    raw = {**tiny.LLAMA, "max_position_embeddings": 1000}
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    contexts = [
        from_hf_config({**raw, "rope_scaling": scaling}, where="").context
        for scaling in (None, {"type": "linear", "factor": 2.5}, llama3)
    ]
    assert contexts == [1000, 2500, 1000]
    mistral = {**raw, "model_type": "mistral", "sliding_window": 100}
    assert from_hf_config(mistral, where="").context == 1000, "a window bounds what is seen, not where"


def test_a_tokenizer_far_beyond_the_tables_is_another_model_s(project, tmp_path):
    config, settings = project
    file = tmp_path / "base" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary |= {f"more{number}": number for number in range(len(vocabulary), 20_000)}
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(MismatchError, match=r"numbers up to 20,001, but the tables of the model 84 rows"):
        make_plan(config, settings)
