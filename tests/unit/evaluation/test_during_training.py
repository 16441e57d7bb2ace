"""Benchmarks of a run: how their questions are prepared, what the plan says of them, and how answers are judged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from asked import write_medqa, write_pubmedqa

from medsft.core.config.run_config import from_mapping
from medsft.core.evaluation.benchmark import first_by_hash
from medsft.core.evaluation.during_training import judged, question_set
from medsft.core.evaluation.requests import Score
from medsft.core.evaluation.tasks.of_run import plan_run
from medsft.core.evaluation.tasks.read import read_task
from medsft.core.planning.plan import RunPlan
from medsft.core.planning.question_set import questions_path, read_questions
from medsft.core.run.rundir import RunDir
from medsft.core.text.plan import plan_rows
from medsft.core.workflow import prepare
from medsft.errors import DataError

REQUESTS = [
    Score(id="a", prefix=(1, 2, 3), continuations=((4,), (5,), (6,))),
    Score(id="b", prefix=(7, 8), continuations=((9,), (10, 11, 12), (13, 14))),
]


def test_options_of_one_token_share_a_document() -> None:
    found = question_set(REQUESTS, [2, 0])
    ends = np.cumsum(found.lengths)
    documents = [found.tokens[end - length : end].tolist() for end, length in zip(ends, found.lengths, strict=True)]
    assert documents == [[1, 2, 3], [7, 8, 10, 11], [7, 8, 13]]
    scored = list(
        zip(found.documents.tolist(), found.rows.tolist(), found.labels.tolist(), found.options.tolist(), strict=True)
    )
    assert scored[:3] == [(0, 2, 4, 0), (0, 2, 5, 1), (0, 2, 6, 2)]
    assert scored[3:7] == [(1, 1, 9, 3), (1, 1, 10, 4), (1, 2, 11, 4), (1, 3, 12, 4)]
    assert scored[7:] == [(2, 1, 13, 5), (2, 2, 14, 5)]


def test_the_first_of_equally_likely_options_is_the_answer() -> None:
    asked = question_set(REQUESTS, [2, 0])
    assert judged(np.array([-3.0, -2, -1, -5, -5, -6]), asked) == [True, True]
    assert judged(np.array([-1.0, -2, -1, -6, -5, -6]), asked) == [False, False]


def test_which_questions_are_asked_depends_on_their_texts_alone(tmp_path: Path) -> None:
    path = write_pubmedqa(tmp_path / "all.jsonl", 40)
    task = first_by_hash(read_task("pubmedqa", path), 10)
    assert "10 of 40 questions" in task.notes[-1]
    chosen = {question.text() for question in task.questions}
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[::-1]) + "\n")
    again = first_by_hash(read_task("pubmedqa", path), 10)
    assert {question.text() for question in again.questions} == chosen
    assert first_by_hash(task, 10) is task


def test_a_plan_has_the_benchmarks_and_their_questions_lie_beside_the_sets(tmp_path: Path) -> None:
    config, settings = tiny.plannable(tmp_path)
    plain = prepare(config, settings)
    tasks = f"pubmedqa={write_pubmedqa(tmp_path / 'p.jsonl', 8)}", f"mine={write_medqa(tmp_path / 'm.jsonl', 6)}"
    config = replace(config, eval_task=tasks, eval_limit=5)
    ahead = plan_run(config, settings, ahead=True)
    assert not (tmp_path / "tokenized" / "questions").exists()
    plan = prepare(config, settings)
    assert [(task.name, task.questions, task.available) for task in plan.tasks] == [("pubmedqa", 5, 8), ("mine", 5, 6)]
    assert ahead.tasks == plan.tasks
    assert RunPlan.from_json(json.loads(plan.to_json())) == plan
    assert plan.identity != plain.identity
    assert "tasks" not in json.loads(plain.to_json())
    folder = tmp_path / "tokenized"
    read = read_questions(folder, plan.tasks[0])
    assert len(read.tokens) == plan.tasks[0].tokens
    assert b"zinc" not in questions_path(folder, plan.tasks[0]).read_bytes()
    rows = {row.label: row.value for row in plan_rows(plan, None, 10**9)}
    assert rows["benchmark"].startswith("pubmedqa: 5 of 8 questions")
    questions_path(folder, plan.tasks[0]).write_bytes(b"")
    with pytest.raises(DataError, match="damaged"):
        read_questions(folder, plan.tasks[0])
    questions_path(folder, plan.tasks[0]).unlink()
    with pytest.raises(DataError, match="not there any more"):
        read_questions(folder, plan.tasks[0])


def test_the_prompts_of_a_run_that_exists_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A template may write the date: on the next day the same command goes on with the same questions."""
    config, settings = tiny.plannable(tmp_path)
    config = replace(config, eval_task=(f"pubmedqa={write_pubmedqa(tmp_path / 'p.jsonl', 8)}",))
    plan = prepare(config, settings)
    RunDir(Path(plan.run_dir)).create(plan.to_json())
    monkeypatch.setattr("medsft.core.evaluation.tasks.of_run._prepared", None)  # would be called to prepare them anew
    assert prepare(config, settings).tasks == plan.tasks


def test_questions_without_options_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "open.jsonl"
    path.write_text("".join(json.dumps({"question": f"Which {n}?", "answer": "Potassium"}) + "\n" for n in range(4)))
    config, settings = tiny.plannable(tmp_path, eval_task=[f"mine={path}"])
    with pytest.raises(DataError, match="no options"):
        prepare(config, settings)
    with pytest.raises(DataError, match=r"gone\.jsonl"):
        prepare(replace(config, eval_task=(f"mine={tmp_path / 'gone.jsonl'}",)), settings)


def test_a_benchmark_without_usual_keys_is_read_by_those_of_the_run(tmp_path: Path) -> None:
    config, settings = tiny.plannable(tmp_path)
    rows = [{"Fall": f"w{n} w1", "Lsg": "AB"[n % 2], "Wahl": {"A": "w2", "B": "w3"}} for n in range(12)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    for name in ("cases.jsonl", "test.jsonl"):
        (tmp_path / name).write_text(text)
    asked = replace(config, eval_task=(f"mine={tmp_path / 'test.jsonl'}",))
    with pytest.raises(DataError, match="12 rows cannot be used"):
        prepare(asked, settings)
    assert not (tmp_path / "tokenized").exists(), "it is said before rows are tokenized"
    keys = {"question_key": "Fall", "answer_key": "Lsg", "options_key": "Wahl"}
    plan = prepare(from_mapping({"data": [tmp_path / "cases.jsonl"], "val": [], **keys}, base=asked), settings)
    assert [(task.name, task.questions) for task in plan.tasks] == [("mine", 12)]
