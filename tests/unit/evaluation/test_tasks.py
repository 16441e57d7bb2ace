"""Each shape in which people have a benchmark, and what is refused: by file and row, never by its text."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from kept import ROOT

from medsft.core.data.sources.row_looks import RowOptions
from medsft.core.evaluation.benchmark import Task, sampled
from medsft.core.evaluation.tasks.own import named_apart
from medsft.core.evaluation.tasks.read import read_task
from medsft.errors import DataError

STEM = "Which vitamin lack gives scurvy?"
LIST = ["Vitamin A", "Vitamin C ", "Vitamin D", "2"]
LETTERED = dict(zip("ABCD", LIST, strict=True))


def lines(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def one(task: Task) -> tuple[Any, ...]:
    question = task.questions[0]
    return question.question, question.options, question.labels, question.gold


EXPECTED = (STEM, ("Vitamin A", "Vitamin C", "Vitamin D", "2"), ("A", "B", "C", "D"), 1)


@pytest.mark.parametrize(
    "row",
    [
        {"question": STEM, "options": LETTERED, "answer": "Vitamin C ", "answer_idx": "B", "meta_info": "step1"},
        {"question": STEM, "options": [{"key": key, "value": value} for key, value in LETTERED.items()], "answer_idx": "B"},
        {"question": STEM, "options": LETTERED, "answer": "Vitamin C"},
        {"id": "x", "sent1": STEM, "sent2": "", **{f"ending{n}": text for n, text in enumerate(LIST)}, "label": 1},
    ],
)
def test_medqa(tmp_path: Path, row: dict[str, Any]) -> None:
    task = read_task("medqa", lines(tmp_path / "test.jsonl", [row, row]))
    assert one(task) == EXPECTED
    assert task.questions[0].written[1] == "Vitamin C "
    assert len({question.id for question in task.questions}) == 2
    assert "MIT" in task.source


def medmcqa(*numbers: Any) -> list[dict[str, Any]]:
    options = dict(zip(("opa", "opb", "opc", "opd"), LIST, strict=True))
    return [{"id": f"q{n}", "question": STEM, **options, "cop": number, "exp": None} for n, number in enumerate(numbers)]


def test_medmcqa_counts_as_its_whole_file_does(tmp_path: Path) -> None:
    hub = read_task("medmcqa", lines(tmp_path / "hub.jsonl", medmcqa(1, 0, 2, 3)))
    assert one(hub) == EXPECTED
    assert [question.gold for question in hub.questions] == [1, 0, 2, 3]
    authors = read_task("medmcqa", lines(tmp_path / "dev.json", medmcqa(2, 1, 3, 4)))
    assert [question.gold for question in authors.questions] == [1, 0, 2, 3]
    assert "from 1" in authors.notes[0]
    table = tmp_path / "dev.csv"
    table.write_text("id,question,opa,opb,opc,opd,cop\n" + "".join(f"q{n},{STEM},2,1,4,3,{n}\n" for n in (1, 2, 3, 4)))
    # a `cop` of 2 is the second option, although the first is called 2
    assert [question.gold for question in read_task("medmcqa", table).questions] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ((1, 2, 3), "both possible"),
        ((0, 4), "neither"),
        ((-1, -1), "test file"),
        ((None, None), "test file"),
        ((1, 7), "neither"),
    ],
)
def test_medmcqa_that_cannot_be_told(tmp_path: Path, numbers: tuple[Any, ...], said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        read_task("medmcqa", lines(tmp_path / "x.jsonl", medmcqa(*numbers)))
    assert caught.value.exit_code == 3
    assert "scurvy" not in str(caught.value)


def test_mmlu(tmp_path: Path) -> None:
    folder = tmp_path / "test"
    folder.mkdir()
    (folder / "anatomy_test.csv").write_text(f'{STEM},Vitamin A,Vitamin C ,Vitamin D,2,B\n"A, or B?",1,2,3,4,C\n')
    (folder / "virology_test.csv").write_text("Which?,1,2,3,4,D\n")
    (tmp_path / "dev").mkdir()
    for subject in ("anatomy", "virology"):
        (tmp_path / "dev" / f"{subject}_dev.csv").write_text("Solved?,1,2,3,4,A\n")
    task = read_task("mmlu", folder / "anatomy_test.csv")
    assert one(task) == EXPECTED
    assert task.questions[1].question == "A, or B?"
    assert {question.subject for question in (*task.questions, *task.examples)} == {"anatomy"}
    assert task.examples_in_order
    assert [question.subject for question in read_task("mmlu", folder).questions] == ["anatomy", "anatomy", "virology"]
    hub = {"question": STEM, "choices": LIST, "answer": 1, "subject": "nutrition"}
    from_hub = read_task("mmlu", lines(tmp_path / "hub.jsonl", [hub, {**hub, "answer": "B"}]))
    assert one(from_hub) == EXPECTED
    assert from_hub.questions[1].gold == 1
    assert from_hub.questions[0].subject == "nutrition"


def test_mmlu_as_people_pack_and_call_it(tmp_path: Path) -> None:
    """With a byte order mark, packed, called otherwise, beside what macOS leaves, and with a subject without examples."""
    rows = "\ufeffWhich?,1,2,3,4,B\n"
    (tmp_path / "anatomy_test.csv.gz").write_bytes(gzip.compress(rows.encode()))
    (tmp_path / "anatomy_dev.csv.gz").write_bytes(gzip.compress(b"Solved?,1,2,3,4,A\n"))
    task = read_task("mmlu", tmp_path / "anatomy_test.csv.gz")
    assert (task.questions[0].question, task.questions[0].subject, task.examples[0].question) == (
        "Which?",
        "anatomy",
        "Solved?",
    )
    (tmp_path / "._anatomy_test.csv").write_bytes(b"\0\5\x16\7")
    (tmp_path / "virology_test.csv").write_text("Which?,1,2,3,4,D\n")
    folder = read_task("mmlu", tmp_path)
    assert [question.id for question in folder.questions] == ["anatomy_test/row 1", "virology_test/row 1"]
    assert (folder.examples, folder.examples_in_order) == ((), False), "examples would be those of other subjects"
    (tmp_path / "law.csv").write_text("Which?,1,2,3,4,D\n")
    assert read_task("mmlu", tmp_path / "law.csv").questions[0].subject == "law"
    hub = {"question": STEM, "choices": LIST, "answer": 1}
    nameless = read_task("mmlu", lines(tmp_path / "train-00000.jsonl", [hub]))
    assert (nameless.questions[0].subject, len(nameless.notes)) == ("", 1)
    assert read_task("mmlu", lines(tmp_path / "law_test.jsonl", [hub])).questions[0].subject == "law"


def test_files_that_are_called_alike_make_tasks_of_two_names(tmp_path: Path) -> None:
    row = {"question": STEM, "options": LIST, "answer": "Vitamin C"}
    paths = [tmp_path / name for name in ("a/mine.v1.jsonl", "a/mine.v2.jsonl", "a/set.jsonl", "b/set.jsonl")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        lines(path, [row])
    read = named_apart([read_task(str(path), path) for path in paths])
    assert [task.name for task in read] == ["mine.v1", "mine.v2", "a-set.jsonl", "b-set.jsonl"]
    assert len({task.title for task in read}) == 4
    [alone] = named_apart([read_task(str(paths[0]), paths[0])])
    assert (alone.name, alone.title) == ("mine", "mine.v1.jsonl")
    twice = named_apart([read_task(str(paths[0]), paths[0])] * 2)
    assert twice[0].name == twice[1].name


def test_remedies_are_possible_ones(tmp_path: Path) -> None:
    """Of the options that say how rows are read `medsft eval` has some."""
    known = {line.removeprefix("medsft eval ") for line in (ROOT / "tests/golden/flags.txt").read_text().splitlines()}
    unclear = {"question": STEM, "options": LIST[:3], "answer": 1}
    for row in (unclear, {"messages": "x"}):
        with pytest.raises(DataError) as caught:
            read_task("mine.jsonl", lines(tmp_path / "mine.jsonl", [row]))
        named = set(re.findall(r"--\w+", caught.value.hint or ""))
        assert "--first_option" in named
        assert named <= known
    letters = [{**row, "cop": "b"} for row in medmcqa(1)]
    with pytest.raises(DataError, match="a number in no row"):
        read_task("medmcqa", lines(tmp_path / "x.jsonl", letters))


def pubmedqa(count: int, **more: Any) -> dict[str, Any]:
    return {
        str(100 + n): {"QUESTION": f"Does {n} help?", "CONTEXTS": ["First.", "Second."], "final_decision": "yes", **more}
        for n in range(count)
    }


def test_pubmedqa(tmp_path: Path) -> None:
    path = tmp_path / "ori_pqal.json"
    path.write_text(json.dumps(pubmedqa(1000), indent=1))
    everything = read_task("pubmedqa", path)
    question = everything.questions[0]
    assert (question.id, question.question, question.context) == ("100", "Does 0 help?", "First.\nSecond.")
    assert (question.options, question.gold) == (("yes", "no", "maybe"), 0)
    assert "All 1,000" in everything.notes[0]
    (tmp_path / "test_ground_truth.json").write_text(json.dumps({str(100 + n): "yes" for n in range(500)}))
    official = read_task("pubmedqa", path)
    assert (len(official.questions), len(official.examples)) == (500, 500)
    assert read_task("pubmedqa", tmp_path).questions == official.questions
    assert "official" in official.notes[0]
    other = lines(tmp_path / "other.jsonl", [{"pubid": 7, "question": "Does it?", "context": "x", "final_decision": "no"}])
    assert "names none of its questions" in read_task("pubmedqa", other).notes[0]
    with pytest.raises(DataError, match="names none of the questions"):  # a person has given it
        read_task("pubmedqa", other, truth=tmp_path / "test_ground_truth.json")
    (tmp_path / "test_ground_truth.json").write_text(json.dumps({"100": "no"}))
    with pytest.raises(DataError, match="another answer"):
        read_task("pubmedqa", path)
    (tmp_path / "test_ground_truth.json").write_text(json.dumps({"100": "yes", "7": "no"}))
    with pytest.raises(DataError, match="not in it"):
        read_task("pubmedqa", path)


@pytest.mark.parametrize(
    "row",
    [
        {
            "pubid": 7,
            "question": "Does it?",
            "context": {"contexts": ["First.", "Second."], "labels": ["A"]},
            "final_decision": "no",
        },
        {"id": "7", "question": "Does it?", "context": "First.\nSecond.", "choices": ["yes", "no", "maybe"], "answer": ["no"]},
    ],
)
def test_pubmedqa_of_the_hub(tmp_path: Path, row: dict[str, Any]) -> None:
    question = read_task("pubmedqa", lines(tmp_path / "rows.jsonl", [row])).questions[0]
    assert (question.id, question.question, question.context, question.gold) == ("7", "Does it?", "First.\nSecond.", 1)


def test_an_abstract_that_pandas_has_written_into_a_cell_is_refused(tmp_path: Path) -> None:
    """The model would read the names of the parts, the quotes and MeSH terms."""
    path = tmp_path / "hub.csv"
    path.write_text("""pubid,question,context,final_decision\n7,Does it?,"{'contexts': ['First.']}",yes\n""")
    with pytest.raises(DataError, match="object of Python written as text"):
        read_task("pubmedqa", path)


def test_pubmedqa_made_into_rows(tmp_path: Path) -> None:
    row = {"id": "7", "system": "Be brief.", "prompt": "Context: x\nQuestion: y?", "gold": "It may.\nThe answer is: maybe"}
    question = read_task("pubmedqa", lines(tmp_path / "rows.jsonl", [row])).questions[0]
    assert (question.system, question.before_label, question.gold) == ("Be brief.", "The answer is: ", 2)
    with pytest.raises(DataError, match="does not end with"):
        read_task("pubmedqa", lines(tmp_path / "rows.jsonl", [row, {**row, "gold": "Nobody knows"}]))


def test_questions_of_ones_own(tmp_path: Path) -> None:
    row = {"question": STEM, "options": LIST, "answer": "Vitamin C"}
    assert one(read_task("mine.jsonl", lines(tmp_path / "mine.jsonl", [row]))) == EXPECTED
    open_rows = lines(tmp_path / "open.jsonl", [{"question": STEM, "answer": "Vitamin C"}])
    task = read_task("open.jsonl", open_rows)
    assert (task.kind, task.questions[0].answer, task.name) == ("open", "Vitamin C", "open")


def test_questions_of_ones_own_under_keys_of_ones_own(tmp_path: Path) -> None:
    wanted = RowOptions.of("auto", {"question_key": "Fall", "answer_key": "Lsg", "options_key": "a,b,c", "first_option": 1})
    row = {"Fall": STEM, **dict(zip("abc", LIST[:3], strict=True)), "Lsg": 2}
    assert one(read_task("mine", lines(tmp_path / "mine.jsonl", [row]), wanted=wanted)) == (
        STEM,
        EXPECTED[1][:3],
        ("A", "B", "C"),
        1,
    )
    wanted = RowOptions.of("auto", {"question_key": "Fall", "answer_key": "Lsg"})
    path = lines(tmp_path / "open.jsonl", [{"Fall": STEM, "Lsg": "Vitamin C"}])
    assert read_task("open", path, wanted=wanted).questions[0].answer == "Vitamin C"
    with pytest.raises(DataError) as error:
        read_task("open", path)
    assert "--question_key" in str(error.value.hint)


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(medmcqa(1, 0, 3)), tmp_path / "validation.parquet")
    assert one(read_task("medmcqa", tmp_path / "validation.parquet")) == EXPECTED
    rows = [{"question": STEM, "choices": LIST, "answer": 1, "subject": "nutrition"}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "mmlu.parquet")
    assert one(read_task("mmlu", tmp_path / "mmlu.parquet")) == EXPECTED


@pytest.mark.parametrize("task", ["pubmedqa", "medqa", "medmcqa", "mmlu"])
def test_rows_of_something_else_are_refused_by_their_keys(tmp_path: Path, task: str) -> None:
    path = lines(tmp_path / "x.jsonl", [{"text": "Mr Secret was seen."}])
    with pytest.raises(DataError, match="`text`") as caught:
        read_task(task, path)
    assert "Secret" not in str(caught.value)


def test_a_row_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    good = {"question": STEM, "options": LETTERED, "answer_idx": "B"}
    bad = [{**good, "answer_idx": "Z"}, {**good, "options": {"A": "only"}}, {**good, "question": " "}]
    contradicting = {**good, "answer": "Vitamin A"}
    path = lines(tmp_path / "x.jsonl", [good, *bad, contradicting])
    with pytest.raises(DataError, match="4 rows cannot be used") as caught:
        read_task("medqa", path)
    assert all(f"{path}:{line}:" in str(caught.value) for line in (2, 3, 4, 5))
    assert "scurvy" not in str(caught.value)
    assert "Vitamin" not in str(caught.value)


def test_a_sample_is_drawn_by_the_seed_and_keeps_the_order(tmp_path: Path) -> None:
    task = read_task("medmcqa", lines(tmp_path / "hub.jsonl", medmcqa(*[n % 4 for n in range(50)])))
    some = sampled(task, 10, 7)
    assert len(some.questions) == 10
    assert sampled(task, 10, 7).questions == some.questions != sampled(task, 10, 8).questions
    numbers = [int(question.id[1:]) for question in some.questions]
    assert numbers == sorted(numbers)
    assert len(some.examples) == 50
