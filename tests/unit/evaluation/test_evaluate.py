"""A whole evaluation, with a function in the place of the model: figures, pairs, overlap, files, events, card, and a kill."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from asked import answers_by, medqa, pubmedqa, source, write_pubmedqa

from medsft.core.evaluation import requests as engine
from medsft.core.evaluation.asking import Ask
from medsft.core.evaluation.benchmark import Task, sampled
from medsft.core.evaluation.card import CARD, update_card, with_results
from medsft.core.evaluation.evaluate import AskProgress, Candidate, Evaluation, evaluate
from medsft.core.evaluation.model import ModelSource, are_one_model, find_base_of
from medsft.core.evaluation.report import details, pair_rows, rows
from medsft.core.evaluation.requests import Answer, Request
from medsft.core.evaluation.results import read_records
from medsft.core.files import sealed
from medsft.core.run.events import EventReader
from medsft.core.run.integrity import EXPORT_MANIFEST, export_damage, hash_file
from medsft.core.run.rundir import RunDir
from medsft.core.text.events import event_line

GOLD = (0, 1, 0, 2)
"""Of `asked.pubmedqa`: yes, no, yes, maybe"""


def candidate(folder: Path, **more: Any) -> Candidate:
    return Candidate(name=folder.name, source=source(folder), home=folder, **more)


def number_of(request: Request) -> int:
    return int(request.id.split("/")[2])


def right(request: Request) -> int:
    return GOLD[number_of(request) % 4]


def run(candidates: Sequence[Candidate], tasks: Sequence[Task], ask: Ask, choose: Any, **more: Any) -> Evaluation:
    return evaluate(candidates, tasks, ask, answers_by(choose, **more), precision="fp32")


def test_figures(tmp_path: Path) -> None:
    one = candidate(tmp_path / "model")
    found = run([one], [pubmedqa(tmp_path, 8)], Ask(), lambda request: right(request) if number_of(request) else 2)
    [result] = found.results
    figures = json.loads(json.dumps(result.to_json()))
    assert {"model", "task", "n", "accuracy", "interval", "macro_f1", "majority", "invalid", "ece", "overlap"} <= figures.keys()
    assert (figures["n"], figures["accuracy"], figures["majority"], figures["majority_label"]) == (8, 7 / 8, 0.5, "yes")
    assert figures["interval"] == pytest.approx((0.5291, 0.9776), abs=1e-4)
    assert figures["ece"] == pytest.approx(1 / 8)
    assert figures["recall"] == {
        "maybe": {"recall": 1.0, "n": 2},
        "no": {"recall": 1.0, "n": 2},
        "yes": {"recall": 0.75, "n": 4},
    }
    assert figures["overlap"] is None
    [record] = read_records(one.home / "eval")
    assert [line["id"] for line in record["questions"]] == [str(n) for n in range(8)]
    assert (record["questions"][0]["gold"], record["questions"][0]["label"]) == ("yes", "maybe")
    assert "zinc" not in json.dumps(record)
    assert list((one.home / "eval").iterdir()) == found.files
    said = "\n".join((*rows([result])[0], *details(result)))
    assert "87.5 %" in said
    assert "50.0 % (yes)" in said
    assert "reliability" in said


def test_all_methods_of_options_with_letters(tmp_path: Path) -> None:
    """This model writes B always, and finds the first place most likely whatever stands there."""
    one = candidate(tmp_path / "model")
    write = one.source.open_tokenizer().tokenizer
    from medsft.core.data.tokenizers.template import Role, Segment

    says = write.encode([Segment("The answer is: B", Role.ANSWER)])[0].tolist()
    ask = Ask(methods=("likelihood", "generate"), shifts=True)
    found = run([one], [medqa(tmp_path, 6)], ask, lambda _: 0, write=lambda _: says)
    likely, written = (result.to_json() for result in found.results)
    assert likely["accuracy"] == written["accuracy"] == pytest.approx(1 / 3)
    assert likely["shifts"] == {"accuracy": pytest.approx(1 / 3), "always": 0.0, "chosen": {"A": 1.0, "B": 0.0, "C": 0.0}}
    assert likely["by_text"]["n"] == 6
    assert (written["invalid"], written["ece"]) == (0.0, None)
    invalid = run([one], [medqa(tmp_path, 6)], Ask(methods=("generate",)), lambda _: 0).results[0]
    assert (invalid.invalid, invalid.accuracy.value) == (1.0, 0.0)


def test_open_questions(tmp_path: Path) -> None:
    from medsft.core.data.tokenizers.template import Role, Segment
    from medsft.core.evaluation.tasks.read import read_task

    path = tmp_path / "open.jsonl"
    path.write_text("".join(json.dumps({"question": f"Which {n}?", "answer": "The potassium"}) + "\n" for n in range(4)))
    one = candidate(tmp_path / "model")
    says = one.source.open_tokenizer().tokenizer.encode([Segment("potassium level.", Role.ANSWER)])[0].tolist()
    [result] = run([one], [read_task(str(path), path)], Ask(), lambda _: 0, write=lambda _: says).results
    assert (result.method, result.accuracy.value) == ("generate", 0.0)
    assert result.f1.value == pytest.approx(2 / 3)
    assert "F1" in "\n".join(details(result))


def test_two_models_are_compared_question_by_question(tmp_path: Path) -> None:
    a, b = candidate(tmp_path / "a"), candidate(tmp_path / "b")
    task = pubmedqa(tmp_path, 40)

    def answer(model: ModelSource, requests: Sequence[Request], keep: Path) -> Iterator[Answer]:
        wrong = 3 if model.weights.name == "a" else 40
        choose = answers_by(lambda one: (GOLD[number_of(one) % 4] + (number_of(one) % wrong == 0)) % 3)
        yield from choose(model, requests, keep)

    found = evaluate([a, b], [task, medqa(tmp_path, 6)], Ask(forms=("label",)), answer, precision="fp32")
    pair, other = (one.to_json() for one in found.pairs)
    assert {"a", "b", "difference", "interval", "p", "gained", "lost"} <= pair.keys()
    assert (pair["a"], pair["b"], pair["gained"], pair["lost"]) == ("a", "b", 13, 0)
    assert pair["difference"] == pytest.approx(13 / 40)
    assert pair["interval"][0] > 0
    assert pair["p"] == pytest.approx(2 / 2**13)
    assert pair["p_holm"] == pytest.approx(2 * pair["p"])
    assert pair_rows(found.pairs)[0][-1] == "better"
    assert other["p"] >= 0.05


def test_a_killed_evaluation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, task = candidate(tmp_path / "model"), pubmedqa(tmp_path, 8)
    asked: list[int] = []

    def ask(_: Sequence[str], requests: Sequence[Request], *rest: Any) -> Iterator[Answer]:
        asked.append(len(requests))
        for done, found in enumerate(answers_by(right)(one.source, requests, tmp_path)):
            if len(asked) == 1 and done == 3:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(engine, "_ask", ask)

    def answer(model: ModelSource, requests: Sequence[Request], keep: Path) -> Iterator[Answer]:
        yield from engine.answer(model, requests, precision="fp32", keep=keep)

    with pytest.raises(KeyboardInterrupt):
        evaluate([one], [task], Ask(), answer, precision="fp32")
    left = evaluate([one], [task], Ask(), answer, precision="fp32")
    assert asked == [8, 5]
    assert left.results[0].accuracy.value == 1.0
    assert list((one.home / "eval").iterdir()) == left.files


def test_a_checkpoint_that_goes_while_it_answers_is_named_as_it_was(tmp_path: Path) -> None:
    """A run that trains removes its older ones."""
    one, task = candidate(tmp_path / "model"), pubmedqa(tmp_path, 8)
    expected = one.source.identity()

    def answer(model: ModelSource, requests: Sequence[Request], keep: Path) -> Iterator[Answer]:
        yield from answers_by(right)(model, requests, keep)
        for path in one.home.glob("*.safetensors"):
            path.unlink()

    evaluate([one], [task], Ask(), answer, precision="fp32")
    assert one.source.identity() != expected
    [record] = read_records(one.home / "eval")
    assert record["model"]["fingerprint"] == expected


def test_the_hash_of_a_file_is_that_of_what_was_asked(tmp_path: Path) -> None:
    """A file may be another by the time that all answers are there, or gone."""
    one, task = candidate(tmp_path / "model"), pubmedqa(tmp_path, 8)
    [file] = task.files
    expected = hash_file(file)["sha256"]

    def answer(model: ModelSource, requests: Sequence[Request], keep: Path) -> Iterator[Answer]:
        file.unlink()
        yield from answers_by(right)(model, requests, keep)

    evaluate([one], [task], Ask(), answer, precision="fp32")
    [record] = read_records(one.home / "eval")
    assert record["data"][0]["sha256"] == expected


def test_the_time_left_does_not_count_what_loading_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a kill the answers of before come at once, then the model is loaded, then an answer comes each second."""
    one, task = candidate(tmp_path / "model"), pubmedqa(tmp_path, 40)
    clock, left = [100.0], dict[int, float | None]()
    monkeypatch.setattr("medsft.core.evaluation.evaluate.time.monotonic", lambda: clock[0])

    def answer(model: ModelSource, requests: Sequence[Request], keep: Path) -> Iterator[Answer]:
        for done, found in enumerate(answers_by(right)(model, requests, keep)):
            clock[0] += 0.0 if done < 20 else 60.0 if done == 20 else 1.0
            yield found

    def note(progress: AskProgress) -> None:
        left[progress.done] = progress.seconds_left

    evaluate([one], [task], Ask(), answer, precision="fp32", progress=note)
    assert [left[done] for done in (1, 20, 21, 22)] == [None] * 4
    assert [left[done] for done in (30, 40)] == [pytest.approx(10, abs=2), 0.0]


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Candidate, RunDir]:
    """A run whose training set has the questions 0 to 3."""
    write_pubmedqa(tmp_path / "seen.jsonl", 4)
    seen = [json.loads(line) for line in (tmp_path / "seen.jsonl").read_text().splitlines()]
    others = [json.loads(line) for line in write_pubmedqa(tmp_path / "others.jsonl", 30, word="iron").read_text().splitlines()]
    with (tmp_path / "mine.jsonl").open("w") as file:
        for row in (*seen, *others[10:]):
            question = "\n".join((*row["context"]["contexts"], row["question"]))
            file.write(json.dumps({"prompt": f"Read this.\n{question}", "gold": row["final_decision"]}) + "\n")
    config, settings = tiny.plannable(tmp_path, data=[tmp_path / "mine.jsonl"], template="chatml")
    plan = tiny.plan_of(config, settings)
    run_dir = tiny.create(plan)
    (run_dir.path / "events.jsonl").touch()
    return candidate(tmp_path / "model", run=run_dir, plan=plan), run_dir


def test_overlap_with_the_training_set_and_the_runs_own_event(trained: tuple[Candidate, RunDir], tmp_path: Path) -> None:
    one, run_dir = trained
    one = replace(one, home=run_dir.path)
    found = run([one], [pubmedqa(tmp_path, 8)], Ask(), lambda request: right(request) if number_of(request) != 6 else 2)
    [result] = found.results
    figures = result.to_json()
    assert figures["overlap"] == 0.5
    assert figures["accuracy_of_overlap"]["accuracy"] == 1.0
    assert figures["accuracy_without_overlap"] == {
        "accuracy": 0.75,
        "interval": pytest.approx([0.3006, 0.9544], abs=1e-4),
        "n": 4,
    }
    [record] = read_records(run_dir.path / "eval")
    assert [line["overlap"] for line in record["questions"]] == [True] * 4 + [False] * 4
    [event] = EventReader(run_dir.events_path).read()
    assert (event.kind, event.data["task"], event.data["accuracy"]) == ("benchmark", "pubmedqa", 0.875)
    assert "pubmedqa by likelihood: 87.5% (" in event_line(event)
    (tmp_path / "mine.jsonl").write_text("{}\n")
    changed = run([one], [pubmedqa(tmp_path, 8)], Ask(), lambda _: 0).results[0]
    assert changed.share_of_overlap is None
    assert "has changed" in changed.overlap.note


def test_the_card_has_the_latest_results_and_the_model_stays_whole(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    one = candidate(tmp_path / "model")
    card = "---\nlibrary_name: transformers\ntags: [medsft, medical]\n---\n\n# Model\n\n---\n"
    (one.home / CARD).write_text(card)
    files = {name: hash_file(one.home / name) for name in (CARD, "config.json")}
    (one.home / EXPORT_MANIFEST).write_text(sealed({"files": files}))
    run([one], [pubmedqa(tmp_path, 8)], Ask(), lambda _: 0)
    found = run([one], [pubmedqa(tmp_path, 8)], Ask(), lambda request: right(request))
    assert any("model card" in note for note in found.notes)
    assert export_damage(one.home) is None
    text = (one.home / CARD).read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["tags"] == ["medsft", "medical"]
    [entry] = front["model-index"]
    [result] = entry["results"]
    assert (result["dataset"]["name"], result["metrics"][0]["value"]) == ("PubMedQA", 1.0)
    assert text.endswith("\n# Model\n\n---\n")
    (one.home / CARD).write_text(text + "My own words.\n")
    assert not update_card(one.home, read_records(one.home / "eval"))
    assert with_results("# no front matter\n", "x", read_records(one.home / "eval")) == "# no front matter\n"


def test_a_sample_does_not_replace_all_questions_in_the_card(tmp_path: Path) -> None:
    one, task = candidate(tmp_path / "model"), pubmedqa(tmp_path, 8)
    for asked in (sampled(task, 2, 1), task, sampled(task, 4, 1)):
        run([one], [asked], Ask(), right)
    other = pubmedqa(tmp_path, 6)
    records = read_records(one.home / "eval")
    found = [with_results("---\na: b\n---\n", "m", records[: n + 1]) for n in range(3)]
    assert ["2 questions" in found[0], "8 questions" in found[1], "8 questions" in found[2]] == [True] * 3
    run([one], [other], Ask(), right)
    assert "6 questions" in with_results("---\na: b\n---\n", "m", read_records(one.home / "eval")), "these are other files"


def test_runs_that_begin_alike_have_one_base_model(tmp_path: Path) -> None:
    """It is asked once, and counts once in the correction for several comparisons."""
    config, settings = tiny.project(tmp_path)

    def base_of(**changes: Any) -> ModelSource:
        return find_base_of(tiny.create(tiny.plan_of(config, settings, **changes)).path)

    whole, adapter = base_of(id="whole"), base_of(id="beside", adapter="lora")
    assert whole.begins != adapter.begins
    assert are_one_model(whole, adapter)
    assert not are_one_model(whole, base_of(id="copied", new_token_init="copy_last"))
    assert not are_one_model(whole, base_of(id="other", run_name="other", template="chatml"))
    assert not are_one_model(whole, replace(whole, begins=None))
