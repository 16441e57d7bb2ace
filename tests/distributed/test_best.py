"""The best checkpoint: kept, exported, the same after a resume; and a run that ends when it no longer improves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny

import medsft
from medsft.core.config.run_config import RunConfig
from medsft.core.evaluation.model import find_model
from medsft.core.run.best import best_checkpoint, end_of_training
from medsft.core.run.events import EventReader
from medsft.core.run.exports import finished_models
from medsft.core.run.integrity import read_export
from medsft.core.run.rundir import RunDir
from medsft.core.settings import Settings
from medsft.core.text.best import best_validation
from medsft.core.workflow import prepare
from medsft.errors import ConfigError

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]


def overfitting(folder: Path, **changes: object) -> tuple[RunConfig, Settings]:
    """Return a run over four rows at a rate that makes it worse on others after a few iterations."""
    config, settings = tiny.project(folder, rows=4)
    config = replace(config, iters=12, eval_interval=1, global_batch=4, lr=3e-2, min_lr=3e-2, save_interval=5)
    return replace(config, **changes), settings  # type: ignore[arg-type]


def losses(events: list[medsft.Event]) -> list[tuple[int, float]]:
    return [(int(iteration), loss) for iteration, loss in tiny.series(events, "eval", "iteration", "loss") if iteration]


def test_the_best_is_kept_beside_the_latest_and_the_same_after_a_resume(tmp_path):
    config, settings = overfitting(tmp_path)
    plan = prepare(config, settings)
    events = tiny.train(plan)
    run = RunDir(Path(plan.run_dir))
    best, least = min(losses(events), key=lambda pair: pair[1])
    assert 0 < best < 10, "the run does not overfit"
    assert run.checkpoints() == [best, 10, 12]
    assert best_checkpoint(run, plan) == best
    assert run.view().best_eval() == (best, least)
    assert end_of_training(run, plan) == 12
    tiny.go_back_to(run, 10)
    again = tiny.train(plan)[len(events) :]
    assert losses(again) == losses(events)[10:]
    assert best_checkpoint(run, plan) == best


def test_patience_ends_a_run_that_no_longer_improves_and_a_resume_ends_it_there(tmp_path):
    whole, settings = overfitting(tmp_path)
    straight = tiny.train(prepare(whole, settings))
    config = replace(whole, id="early", patience=2, keep_last=0, save_interval=1)
    plan = prepare(config, settings)
    events = tiny.train(plan)
    run = RunDir(Path(plan.run_dir))
    best, _ = min(losses(straight), key=lambda pair: pair[1])
    assert losses(events) == losses(straight)[: best + 2]
    assert end_of_training(run, plan) == run.checkpoints()[-1] == best + 2
    tiny.go_back_to(run, best + 1)
    assert end_of_training(run, plan) is None
    assert losses(tiny.train(plan)[len(events) :]) == losses(events)[-1:]
    steps = tiny.series(EventReader(run.events_path).read(), "step", "iteration")
    assert tiny.series(tiny.train(plan), "step", "iteration") == steps, "ranks that are restarted at the end train no more"
    assert end_of_training(run, replace(plan, config=replace(config, patience=3))) is None


@pytest.mark.parametrize("asked", ["best", "last", "both"])
def test_which_checkpoint_becomes_the_finished_model(tmp_path, asked):
    config, settings = overfitting(tmp_path, export_checkpoint=asked)
    plan = prepare(config, settings)
    tiny.train(plan)
    run = RunDir(Path(plan.run_dir))
    best, folder = best_checkpoint(run, plan), Path(plan.export_dir)
    last = folder.with_name(f"{folder.name}-last")
    expected = {"best": {folder: best}, "last": {folder: 12}, "both": {folder: best, last: 12}}
    assert finished_models(run, plan, 12).folders == expected[asked]
    assert find_model(run.path).iteration == expected[asked][folder], "it is asked as it is exported"
    damaged = run.checkpoint_path(best or 0) / "config.json"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b" ")  # of the size that the manifest says
    without = finished_models(run, plan, 12)
    assert without.folders == {folder: 12}
    assert without.damaged_best == (None if asked == "last" else best)


def test_a_run_exports_its_best_checkpoint_and_says_so(tmp_path):
    config, settings = overfitting(tmp_path, patience=3)
    view = medsft.run(config, settings)
    assert view.outcome == "finished", view.reason
    best, least = view.best_eval() or (0, 0.0)
    assert (view.iteration, view.exported_iteration) == (best + 3, best)
    made = read_export(Path(view.export))
    assert made["checkpoint"]["iteration"] == best
    assert made["metrics"]["validation_loss"] == least
    sentence = best_validation(view)
    assert sentence.startswith(f"Best validation after iteration {best} (")
    assert "higher" in sentence
    assert sentence in (Path(view.export) / "README.md").read_text()
    with pytest.raises(medsft.MedsftError, match="is finished"):
        prepare(config, settings)


def test_none_is_kept_without_validation_or_when_not_asked_for(tmp_path):
    config, settings = overfitting(tmp_path, keep_best="none")
    plan = prepare(config, settings)
    tiny.train(plan)
    run = RunDir(Path(plan.run_dir))
    assert run.checkpoints() == [10, 12]
    assert best_checkpoint(run, plan) is None
    with pytest.raises(ConfigError, match="no validation set"):
        prepare(replace(config, run_name="alone", val=(), keep_best="loss", patience=1), settings)
    with pytest.raises(ConfigError, match="keeps none"):
        prepare(replace(config, patience=1), settings)
