"""A plan of a run that goes on from an adapter: what it takes over, what it records, and what it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from adapters import write_peft
from typer.testing import CliRunner

from medsft.cli.app import app
from medsft.core.config.lora import TARGETS
from medsft.core.config.run_config import RunConfig
from medsft.core.evaluation.model import find_base_of
from medsft.core.planning.plan import RunPlan, difference
from medsft.core.planning.planner import make_plan, preview
from medsft.core.run.rundir import RunDir
from medsft.core.settings import Settings, add_checkpoint, load_settings
from medsft.core.text.adapter import adapter_text, start_text
from medsft.core.text.plan import plan_rows
from medsft.core.workflow import check_against_existing, prepare, resume
from medsft.errors import ConfigError, ExitCode, MismatchError

ROWS = {"embed_tokens": [3, 84], "lm_head": [84]}
"""Of a base with 84 rows: one of its own, and the first of the two that the template adds."""


WHOLE_TABLES = {f"base_model.model.{name}.weight": ("F32", (84, 32)) for name in ("model.embed_tokens", "lm_head")}


def project(folder: Path, *, adapter: str = "lora", base: str | None = None, **changes: Any) -> tuple[RunConfig, Settings]:
    """A project whose checkpoint `tiny` is an adapter of rank 4 on two layers; `changes` are of the adapter's folder."""
    config, _ = tiny.plannable(folder, adapter=adapter, global_batch=8)
    write_peft(folder / "adapter", folder / "base", **{"rows": ROWS, **changes})
    add_checkpoint(folder / "medsft.toml", "tiny", 0.001, folder / "adapter", base=folder / base if base else None)
    return config, load_settings(folder / "medsft.toml")


def test_the_adapters_own_values_are_taken(tmp_path):
    config, settings = project(tmp_path, use_rslora=True)
    plan = prepare(config, settings)
    lora = plan.config.lora
    assert lora is not None
    assert (lora.rank, lora.alpha, lora.targets, lora.rslora) == (4, 8.0, ("q_proj", "v_proj"), True)
    assert plan.base.path == str(tmp_path / "base")
    start = plan.base.adapter
    assert start is not None
    assert (start.path, start.rows) == (str(tmp_path / "adapter"), (3, 84))
    assert plan.base.trained_rows == 3, "84 and 85 are new, 3 is the adapter's alone"
    assert plan.adapter is not None
    assert plan.adapter.rows == 3
    assert RunPlan.from_json(json.loads(plan.to_json())) == plan
    shown = {row.label: row.text for row in plan_rows(plan, None, 1 << 40)}
    assert "adapter" in shown["trained on from"]
    assert shown["adapter"] == adapter_text(plan.adapter)
    assert start.fingerprint in start_text(plan)
    assert prepare(config, settings).identity == plan.identity
    given = replace(config, lora_rank=4, lora_alpha=8.0, lora_targets="v_proj, q_proj", rslora=True)
    assert make_plan(given, settings).identity == plan.identity


def test_all_targets_have_the_name_of_their_group(tmp_path):
    config, settings = project(tmp_path, targets=TARGETS, rows=None)
    plan = prepare(config, settings)
    assert plan.config.lora_targets == "all"
    assert plan.base.trained_rows == 2
    assert start_text(prepare(replace(config, id="new"), tiny_settings(tmp_path))) == ""


def tiny_settings(folder: Path) -> Settings:
    add_checkpoint(folder / "medsft.toml", "tiny", 0.001, folder / "base")
    return load_settings(folder / "medsft.toml")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lora_rank": 8}, "--lora_rank: 8 is given, but the adapter in .*adapter has 4"),
        ({"lora_alpha": 16.0}, "--lora_alpha: 16 is given, but .* has 8"),
        ({"lora_targets": "mlp"}, "--lora_targets: mlp is given, but .* has q_proj,v_proj"),
        ({"rslora": True}, "--rslora: on is given, but .* has off"),
    ],
)
def test_other_values_are_refused(tmp_path, given, message):
    config, settings = project(tmp_path)
    with pytest.raises(ConfigError, match=message):
        prepare(replace(config, **given), settings)
    found = preview(replace(config, **given), settings)
    assert found.plan is None
    assert [problem.where for problem in found.problems] == [f"--{next(iter(given))}"]


def test_another_adapter_is_another_run(tmp_path):
    config, settings = project(tmp_path)
    plan = prepare(config, settings)
    RunDir(Path(plan.run_dir)).create(plan.to_json())
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    other = make_plan(config, settings)
    [line] = difference(plan, other)
    assert line.startswith("adapter that is trained on: was ")
    with pytest.raises(MismatchError, match="adapter that is trained on: was"):
        check_against_existing(other)
    assert make_plan(config, tiny_settings(tmp_path)).identity != plan.identity


def test_all_weights_of_an_adapter_cannot_be_trained(tmp_path):
    config, settings = project(tmp_path, adapter="none", base="missing")
    with pytest.raises(
        MismatchError, match=r"an adapter \(PEFT\), not a model.*\n.*--adapter lora, or .*medsft merge"
    ) as caught:
        prepare(config, settings)
    assert caught.value.exit_code == ExitCode.MISMATCH
    assert not (tmp_path / "tokenized").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "a DoRA adapter"),
        ({"bias": "all"}, "it trained biases"),
        ({"modules_to_save": ["lm_head", "score"]}, r'whole modules \(`modules_to_save`\): "score"'),
        (
            {
                "rows": None,
                "more": {f"base_model.model.{n}.weight": ("F32", (84, 32)) for n in ("model.embed_tokens", "lm_head")},
            },
            r"whole tables of tokens \(model.embed_tokens.weight, lm_head.weight\).*\n.*medsft merge",
        ),
        ({"without": ".layers.2.self_attn.q_proj"}, "an adapter of some layers only"),
    ],
)
def test_what_is_not_trained_is_refused_by_its_name(tmp_path, changes, message):
    config, settings = project(tmp_path, **changes)
    with pytest.raises(MismatchError, match=message):
        prepare(config, settings)


def test_a_base_that_lies_elsewhere_is_named_in_the_settings(tmp_path, monkeypatch):
    config, settings = project(tmp_path, base_model_name_or_path="somebody/Large-1B")
    with pytest.raises(ConfigError, match=r"belongs to somebody/Large-1B, which is not here") as caught:
        prepare(config, settings)
    assert f"medsft checkpoints add tiny 0.001 {tmp_path / 'adapter'} --base BASE" in caught.value.problems[0].hint
    monkeypatch.chdir(tmp_path)
    added = CliRunner().invoke(app, ["checkpoints", "add", "tiny", "0.000036", "adapter", "--base", "base"])
    assert "(an adapter of base)" in added.stderr
    found = load_settings()
    assert found.checkpoints["tiny", 0.000036].base == tmp_path / "base"
    plan = prepare(replace(config, size=0.000036), found)
    assert plan.base.path == str(tmp_path / "base")
    refused = CliRunner().invoke(app, ["checkpoints", "add", "tiny", "0.000036", "base", "--base", "adapter"])
    assert (refused.exit_code, "base is no adapter" in refused.stderr) == (2, True)
    tiny.write_base(tmp_path / "elsewhere", hidden_size=64)
    with pytest.raises(MismatchError, match="an adapter of another base than"):
        prepare(*project(tmp_path, base="elsewhere"))


def test_what_is_decided_for_a_person_is_said(tmp_path):
    config, settings = project(tmp_path, lora_dropout=0.05)
    assert any("was trained with dropout (0.05)" in line for line in prepare(config, settings).warnings)


def test_a_project_that_was_moved_finds_its_adapter(tmp_path, monkeypatch):
    config, settings = project(tmp_path / "before")
    plan = prepare(config, settings)
    run = RunDir(Path(plan.run_dir))
    run.create(plan.to_json())
    (tmp_path / "before").rename(tmp_path / "now")
    moved = RunDir(tmp_path / "now" / run.path.relative_to(tmp_path / "before"))
    monkeypatch.chdir(tmp_path)
    again = resume(moved)
    assert again.identity == plan.identity
    assert again.base.adapter is not None
    assert again.base.adapter.path == str(tmp_path / "now" / "adapter")
    begins = find_base_of(moved.path)
    assert (begins.adapter, begins.begins) == (tmp_path / "now" / "adapter", moved.path)
    shutil.rmtree(tmp_path / "now" / "adapter")
    with pytest.raises(MismatchError, match="the adapter that this run began with is not there any more"):
        resume(moved)
