"""A project that lies elsewhere than when its run was planned."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import tiny

from medsft.core.planning.places import moved_to, places_of, with_places
from medsft.core.planning.plan import RunPlan
from medsft.core.run.launch import Launch, load_plan
from medsft.core.run.rundir import RunDir
from medsft.core.workflow import prepare, resume
from medsft.errors import MismatchError


@pytest.fixture
def planned(tmp_path) -> tuple[Path, RunDir, RunPlan]:
    """A project with a run that was planned there and moved since; nothing is left at the old place."""
    before = tmp_path / "before" / "project"
    config, settings = tiny.plannable(before)
    plan = prepare(config, settings)
    RunDir(Path(plan.run_dir)).create(plan.to_json())
    now = tmp_path / "now"
    before.rename(now)
    return now, RunDir(now / Path(plan.run_dir).relative_to(before)), plan


def test_what_lay_beside_the_run_lies_beside_it_still(planned):
    now, run, plan = planned
    here = load_plan(run)
    assert here.identity == plan.identity
    assert places_of(here) == {
        "base": str(now / "base"),
        "tokenizer": str(now / "base"),
        "train": str(now / "tokenized" / "words"),
        "val": str(now / "tokenized" / "words-val"),
        "export": str(now / "runs" / Path(plan.export_dir).name),
    }
    assert here.run_dir == str(run.path)
    assert moved_to(here, run.path) == here
    assert Launch.of(here).apply(plan).base.path == str(now / "base")


def test_a_resume_finds_them(planned, tmp_path, monkeypatch):
    _, run, plan = planned
    monkeypatch.chdir(tmp_path)
    again = resume(run)
    assert again.identity == plan.identity
    assert places_of(again) == places_of(load_plan(run))


def test_what_the_current_settings_name_is_taken_when_it_is_the_same(planned, tmp_path, monkeypatch):
    now, run, plan = planned
    away = tmp_path / "away"
    away.mkdir()
    (now / "base").rename(away / "model")
    monkeypatch.chdir(now)
    with pytest.raises(MismatchError, match="not there any more"):
        resume(run)
    (now / "medsft.toml").write_text(f'[checkpoints.tiny]\n0.001 = "{away / "model"}"\n')
    again = resume(run)
    assert (again.base.path, again.identity) == (str(away / "model"), plan.identity)
    read = load_plan(run)  # what an export, an evaluation and a chat read, without a start in between
    assert (read.base.path, read.base.tokenizer, read.identity) == (again.base.path, again.base.tokenizer, plan.identity)
    tiny.write_weights(away / "model", "F32")
    assert load_plan(run).base.path == plan.base.path, "another model is not taken"


def test_another_model_at_the_old_place_is_not_taken(planned, monkeypatch):
    now, run, _ = planned
    tiny.write_weights(now / "base", "F32")
    monkeypatch.chdir(now)
    with pytest.raises(MismatchError, match="base model: was"):
        resume(run)


def test_paths_outside_the_project_stay(planned):
    _, run, plan = planned
    outside = with_places(plan, {"base": "/models/base", "tokenizer": ""})
    assert moved_to(outside, run.path).base.path == "/models/base"
    assert moved_to(outside, run.path).base.tokenizer == ""


def test_what_the_latest_start_has_found_elsewhere_is_taken_from_there(planned, tmp_path):
    now, run, plan = planned
    away = tmp_path / "away"
    (now / "base").rename(away)
    found = with_places(load_plan(run), {"base": str(away), "tokenizer": str(away), "train": str(tmp_path / "nowhere")})
    run.launch_path.parent.mkdir(parents=True, exist_ok=True)
    run.launch_path.write_text(json.dumps(asdict(Launch.of(found))))
    here = load_plan(run)
    assert places_of(here) == {
        "base": str(away),
        "tokenizer": str(away),
        "train": str(now / "tokenized" / "words"),
        "val": str(now / "tokenized" / "words-val"),
        "export": str(now / "runs" / Path(plan.export_dir).name),
    }
    assert here.identity == plan.identity
