"""Benchmarks during training: the likelihoods of `medsft eval` for each checkpoint, at every layout; and the best by them."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_tokenizers
from asked import write_medqa, write_pubmedqa

import medsft
from medsft.core.config.run_config import RunConfig
from medsft.core.engine.commands.answer import load
from medsft.core.engine.infer.scoring import score
from medsft.core.engine.train import questions
from medsft.core.evaluation.asking import Ask, asking
from medsft.core.evaluation.measure import NO_OVERLAP, measure
from medsft.core.evaluation.model import find_model
from medsft.core.evaluation.requests import Score
from medsft.core.evaluation.tasks.read import read_task
from medsft.core.planning.plan import RunPlan
from medsft.core.run.best import best_checkpoint, end_of_training
from medsft.core.run.events import EventReader
from medsft.core.run.integrity import read_export
from medsft.core.run.rundir import RunDir
from medsft.core.settings import Settings
from medsft.core.text.best import best_validation, task_results
from medsft.core.workflow import prepare, resume
from medsft.errors import MismatchError

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]

LAYOUTS = [(1, 1, 1), (1, 1, 2), (2, 1, 1), (1, 2, 1), (2, 2, 1)]


def project(folder: Path, **changes: Any) -> tuple[RunConfig, Settings]:
    """A short run that is asked two benchmarks, of letters and of words; every checkpoint stays."""
    config, settings = tiny.project(folder, rows=8, vocab_size=512, max_position_embeddings=1024)
    tiny_tokenizers.write_qwen(folder / "base")
    tasks = f"medqa={write_medqa(folder / 'medqa.jsonl', 9)}", f"pubmedqa={write_pubmedqa(folder / 'pubmedqa.jsonl', 8)}"
    config = replace(config, eval_task=tasks, iters=4, eval_interval=2, save_interval=2, keep_last=0, global_batch=4)
    return replace(config, **changes), settings


def keep_likelihoods(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Have rank 0 of a run write what it judges by into a folder, in the order in which it is asked."""
    folder.mkdir()
    judged = questions.judged

    def kept(log_p: Any, asked: Any) -> list[bool]:
        if os.environ["RANK"] == "0":
            np.save(folder / f"{len(list(folder.iterdir())):03d}.npy", log_p)
        return judged(log_p, asked)

    monkeypatch.setattr(questions, "judged", kept)


def evaluated(plan: RunPlan, folder: Path, iteration: int) -> list[tuple[list[float], float]]:
    """What `medsft eval` finds of a checkpoint: log p of all options, and the accuracy, for each benchmark."""
    model = find_model(Path(plan.run_dir), iteration=iteration)
    decoder, found = load(model, "fp32", ids=plan.base.model.vocab_size), []
    for name in ("medqa", "pubmedqa"):
        task = read_task(name, folder / f"{name}.jsonl")
        asked = asking(task, Ask(forms=("label",)), model.open_tokenizer(), model.ends, model.context)
        by_id = {one.id: one for one in score(decoder, [r for r in asked.requests if isinstance(r, Score)], most_tokens=2048)}
        for request in asked.requests:
            asked.take(by_id[request.id])
        log_p = [value for request in asked.requests for value in by_id[request.id].log_likelihoods]
        found.append((log_p, measure("m", asked, "likelihood", NO_OVERLAP).accuracy.value))
    return found


def accuracies(events: list[medsft.Event]) -> list[tuple[int, str, float]]:
    return tiny.series(events, "eval_task", "iteration", "task", "accuracy")


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_it_finds_what_medsft_eval_finds_of_each_checkpoint(tmp_path, layout, monkeypatch):
    pp, dp, tp = layout
    config, settings = project(tmp_path, pp=pp, tp=tp, nproc_per_node=pp * dp * tp)
    plan = prepare(config, settings)
    keep_likelihoods(monkeypatch, tmp_path / "kept")
    events = tiny.train(plan)
    kept = [np.load(path) for path in sorted((tmp_path / "kept").iterdir())]
    said = accuracies(events)
    assert [(iteration, task) for iteration, task, _ in said] == [(n, t) for n in (0, 2, 4) for t in ("medqa", "pubmedqa")]
    for place, iteration in ((2, 2), (4, 4)):
        for number, (log_p, accuracy) in enumerate(evaluated(plan, tmp_path, iteration)):
            assert kept[place + number] == pytest.approx(log_p, abs=2e-4)
            assert said[place + number][2] == accuracy
    low, high = tiny.series(events, "eval_task", "interval")[0][0]
    assert 0 <= low < said[0][2] < high <= 1
    assert "We gave" not in (Path(plan.run_dir) / "events.jsonl").read_text()


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_it_changes_nothing_that_is_trained(tmp_path, adapter):
    config, settings = project(tmp_path, adapter=adapter)
    asked = tiny.train(prepare(config, settings))
    alone = tiny.train(prepare(replace(config, id="alone", eval_task=()), settings))
    for kind in ("step", "eval"):
        assert tiny.series(asked, kind, "iteration", "loss") == tiny.series(alone, kind, "iteration", "loss")
    assert not accuracies(alone)
    assert len(accuracies(asked)) == 6


def expected_best(events: list[medsft.Event], task: str) -> int:
    """The highest accuracy, of equal ones that with the lowest loss, then the first."""
    losses = dict(tiny.series(events, "eval", "iteration", "loss"))
    found = [(-accuracy, losses.get(n, 0.0), n) for n, name, accuracy in accuracies(events) if name == task and n]
    return min(found)[2]


@pytest.mark.parametrize("validates", [True, False])
def test_the_best_by_accuracy_is_kept_and_the_same_after_a_resume(tmp_path, validates):
    config, settings = project(tmp_path, keep_best="accuracy:pubmedqa", iters=8, eval_interval=1, keep_last=1, save_interval=6)
    config = replace(config, lr=3e-2, min_lr=3e-2, val=config.val if validates else ())
    plan = prepare(config, settings)
    events = tiny.train(plan)
    run = RunDir(Path(plan.run_dir))
    best = expected_best(events, "pubmedqa")
    assert best_checkpoint(run, plan) == run.view().best_iteration() == best
    assert run.checkpoints() == sorted({best, 8})
    assert [int(step) for step in run.view().tasks["medqa"].steps] == list(range(9))
    tiny.go_back_to(run, best)
    resumed = resume(run)
    assert resumed.identity == plan.identity
    again = tiny.train(resumed)[len(events) :]
    assert accuracies(again) == [one for one in accuracies(events) if one[0] > best]
    assert best_checkpoint(run, plan) == best
    other = replace(plan, config=replace(plan.config, keep_best="accuracy:medqa"))
    assert best_checkpoint(run, other) is None, "what was best by another measure is not the best by this one"
    sentence = best_validation(run.view())
    assert "by the accuracy in pubmedqa" in sentence
    assert len(task_results(run.view())) == 2


def test_patience_counts_by_the_accuracy(tmp_path):
    config, settings = project(tmp_path, keep_best="accuracy:medqa", iters=12, eval_interval=1, patience=2)
    plan = prepare(replace(config, val=()), settings)
    events = tiny.train(plan)
    run = RunDir(Path(plan.run_dir))
    last, best = run.view().iteration, expected_best(events, "medqa")
    assert last == min(12, best + 2)
    assert end_of_training(run, plan) == last


def test_a_start_that_was_ended_before_the_first_checkpoint_asks_only_what_is_missing(tmp_path):
    config, settings = project(tmp_path)
    plan = prepare(config, settings)
    straight = tiny.train(plan)
    run = RunDir(Path(plan.run_dir))
    tiny.go_back_to(run, 0)
    lines = run.events_path.read_text().splitlines(keepends=True)
    first = next(n for n, line in enumerate(lines) if json.loads(line)["kind"] == "eval_task")
    run.events_path.write_text("".join(lines[: first + 1]))
    tiny.train(plan)
    assert accuracies(EventReader(run.events_path).read()) == accuracies(straight)
    assert list(run.view().eval_steps) == [0, 2, 4]


def test_a_run_goes_on_with_the_questions_that_it_began_with(tmp_path):
    config, settings = project(tmp_path)
    plan = prepare(config, settings)
    tiny.train(plan)
    run = RunDir(Path(plan.run_dir))
    tiny.go_back_to(run, 2)
    write_medqa(tmp_path / "medqa.jsonl", 6)
    with pytest.raises(MismatchError, match="questions of --eval_task"):
        prepare(config, settings)
    assert resume(run).tasks == plan.tasks
    (tmp_path / "medqa.jsonl").unlink()
    assert len(accuracies(tiny.train(resume(run)))) == 8
    for path in (tmp_path / "tokenized" / "questions").iterdir():
        path.write_bytes(path.read_bytes()[:-200])
    tiny.go_back_to(run, 2)
    with pytest.raises(Exception, match=r"exit code|terminated"):
        tiny.train(resume(run))
    assert any("is damaged" in error.failure.reason for error in run.rank_errors())


def test_a_run_says_at_its_end_which_was_the_best_and_exports_it(tmp_path):
    config, settings = project(tmp_path, keep_best="accuracy:pubmedqa", val=())
    view = medsft.run(config, settings)
    assert view.outcome == "finished", view.reason
    made = read_export(Path(view.export))
    assert made["checkpoint"]["iteration"] == view.best_iteration()
    assert made["metrics"]["benchmark_accuracy"].keys() == {"medqa", "pubmedqa"}
    card = (Path(view.export) / "README.md").read_text()
    assert "| Accuracy in pubmedqa | " in card
