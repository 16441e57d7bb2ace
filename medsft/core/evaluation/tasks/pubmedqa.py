"""PubMedQA: is the answer to a question yes, no or maybe, as its abstract has it.

{"PMID": {"QUESTION", "CONTEXTS": [...], "final_decision"}}     ori_pqal.json of its authors
{"PMID": "yes", ...}                                            test_ground_truth.json: the 500 of the official test
{"pubid", "question", "context": {"contexts": [...]}, "final_decision"}      the hub
{"question", "context": "...", "choices", "answer": ["yes"]}    other exports of the hub
{"prompt", "gold": "... The answer is: yes"}                    rows that somebody has made of it
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from medsft.core.data.sources.base import BadRow
from medsft.core.data.sources.multiple_choice import question_of
from medsft.core.data.sources.open import open_rows
from medsft.core.data.sources.values import fields_of, found, kind_of, optional_text, refuse_surrogates, text, under
from medsft.core.evaluation.benchmark import Question, Task
from medsft.core.evaluation.tasks.rows import Fields, Shape, TaskRow, identified, read_questions, read_rows, row_id
from medsft.core.units import count
from medsft.errors import DataError

LABELS = ("yes", "no", "maybe")
TRUTH_NAME = "test_ground_truth.json"
_ROWS_NAME = "ori_pqal.json"
_ALL = 1000
_ENDS_WITH_LABEL = re.compile(r"(?:.*?\W)??((?:(?:the )?answer(?: is)?\s*:?\s*)?)\b(yes|no|maybe)\b[.!]?\s*", re.IGNORECASE)


_WRITTEN_OBJECTS = ("{'contexts':", '{"contexts":')


def read_pubmedqa(path: Path, truth: Path | None = None) -> Task:
    """Read PubMedQA: a file of rows, or a folder with `ori_pqal.json`.

    With `test_ground_truth.json`, given or beside the rows, the questions of the official test are asked and the others are
    there for examples. Raises DataError.
    """
    if path.is_dir():
        path = path / _ROWS_NAME
    beside = path.with_name(TRUTH_NAME)
    given, truth = truth is not None, truth or (beside if beside.is_file() else None)
    shapes = [
        Shape(("QUESTION", "CONTEXTS", "final_decision"), _of_the_authors),
        Shape(("question", "context", "final_decision"), _of_the_hub),
        Shape(("question", "context", "answer"), _of_the_hub),
        Shape(("prompt", "gold"), _made_into_rows),
    ]
    rows = read_rows(open_rows(path))
    questions = read_questions(rows, shapes, "PubMedQA", path)
    ids = identified(questions, rows)
    named = tuple(replace(question, id=id_) for question, id_ in zip(questions, ids, strict=True))
    task = Task(name="pubmedqa", title="PubMedQA", kind="words", questions=named, files=(path,))
    if truth is not None:
        return _official(task, truth, given=given)
    if len(named) == _ALL:
        note = f"All {count(_ALL)} questions are asked; the official test is 500 of them, which {TRUTH_NAME} names."
        return replace(task, notes=(note,))
    return task


def _official(task: Task, truth: Path, *, given: bool) -> Task:
    """Return the task with the questions of the official test alone. Raises DataError."""
    answers = read_truth(truth)
    known = {question.id: question for question in task.questions}
    if given and not answers.keys() & known.keys():
        raise DataError(
            f"{truth} names none of the questions of {task.files[0]}",
            hint="give the file of rows that it belongs to, or leave it away",
        )
    if not answers.keys() & known.keys():
        # The file beside belongs to other rows, such as those of the training part.
        note = f"{truth.name} beside the file names none of its questions, so all of them are asked."
        return replace(task, notes=(note,))
    missing = len(answers.keys() - known.keys())
    if missing:
        raise DataError(
            f"{task.files[0]}: {count(missing)} of the {count(len(answers))} questions of {truth.name} are not in it",
            hint="take both files from one copy of PubMedQA",
        )
    other = [question.place for id_, question in known.items() if answers.get(id_, question.gold_label) != question.gold_label]
    if other:
        raise DataError(
            f"{other[0]}: another answer than {truth.name} has; {count(len(other))} in all",
            hint="take both files from one copy of PubMedQA",
        )
    asked = tuple(question for id_, question in known.items() if id_ in answers)
    note = f"The {count(len(asked))} questions of the official test, as {truth.name} names them."
    return replace(
        task,
        questions=asked,
        examples=tuple(question for id_, question in known.items() if id_ not in answers),
        examples_of="the questions outside the official test",
        files=(*task.files, truth),
        notes=(note,),
    )


def read_truth(path: Path) -> Mapping[str, str]:
    """Return the answers of `test_ground_truth.json` by their PMID. Raises DataError."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DataError(f"{path}: cannot be read", hint="take it from the repository of PubMedQA again") from None
    if not isinstance(raw, dict) or not raw or not set(map(str, raw.values())) <= set(LABELS):
        raise DataError(f"{path}: not an object of yes, no and maybe by PMID", hint="it is not the file of PubMedQA")
    return raw


def _of_the_authors(row: TaskRow) -> Question:
    return _question(
        row, question_of(row.fields, "QUESTION"), _context(row.fields, "CONTEXTS"), under(row.fields, "final_decision")
    )


def _of_the_hub(row: TaskRow) -> Question:
    there, decision = found(row.fields, "final_decision")
    if not there:
        decision = under(row.fields, "answer")
        if isinstance(decision, list) and len(decision) == 1:
            decision = decision[0]
    return _question(row, question_of(row.fields, "question"), _context(row.fields, "context"), decision)


def _context(fields: Fields, key: str) -> str:
    """Return the abstract: its parts each on a line."""
    value = under(fields, key)
    inner = fields_of(value)
    if inner is not None:
        value = inner.get("contexts")
    if isinstance(value, str) and value.startswith(_WRITTEN_OBJECTS):
        raise BadRow(f"'{key}' is an object of Python written as text, as pandas writes one into a CSV file")
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise BadRow(f"'{key}' is {kind_of(value)}, not the parts of an abstract")
    joined = "\n".join(parts)
    refuse_surrogates(joined, f"under '{key}'")
    return joined


def _question(row: TaskRow, question: str, context: str, decision: object) -> Question:
    return Question(
        id=row_id(row.fields, "pubid", "pmid", "PMID", "id", "question_id"),
        place=row.place,
        question=question,
        context=context,
        options=LABELS,
        written=LABELS,
        labels=LABELS,
        gold=_place(decision),
    )


def _place(decision: object) -> int:
    if decision is None or decision == "":
        raise BadRow("no answer: the rows of PubMedQA without labels cannot be evaluated on")
    if not isinstance(decision, str) or decision.strip().lower() not in LABELS:
        raise BadRow("the answer is not yes, no or maybe")
    return LABELS.index(decision.strip().lower())


def _made_into_rows(row: TaskRow) -> Question:
    """The question as it stands in the prompt; "The answer is: ", where it stands before the label, is how this row answers.

    Not what comes before: a reason that leads to the right label would be shown to the model before each label.
    """
    gold = text(row.fields, "gold")
    last = gold.rstrip().rpartition("\n")[2]
    found_ = _ENDS_WITH_LABEL.fullmatch(last)
    if found_ is None:
        raise BadRow("'gold' does not end with yes, no or maybe")
    question = _question(row, question_of(row.fields, "prompt"), "", found_[2])
    return replace(question, system=optional_text(row.fields, "system"), before_label=found_[1])
