"""MedQA, MedMCQA and MMLU, in the shapes in which people have them.

    {"question", "options": {"A": ...}, "answer", "answer_idx"}      MedQA of its authors; options also as [{"key", "value"}]
    {"sent1", "ending0", ..., "ending3", "label"}                    MedQA on the hub; label from 0
    {"question", "opa", ..., "opd", "cop"}                           MedMCQA; cop from 1, on the hub from 0
    question,option,option,option,option,B                           MMLU of its authors: CSV without a first row of names
    {"question", "choices": [...], "answer", "subject"}              MMLU on the hub; answer from 0

What a shape says of its right option is taken as that alone: a `cop` of 2 is a number, also where an option is called 2.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medsft.core.data.sources.base import BadRow, RowSource
from medsft.core.data.sources.csv_rows import CsvSource, Dialect
from medsft.core.data.sources.endings import without_ending
from medsft.core.data.sources.json_object import BOM
from medsft.core.data.sources.multiple_choice import number_of, options_of, question_of
from medsft.core.data.sources.open import open_rows
from medsft.core.data.sources.streams import open_stream
from medsft.core.data.sources.values import found, text, under
from medsft.core.evaluation.benchmark import Question, Task
from medsft.core.evaluation.tasks.rows import (
    Shape,
    TaskRow,
    by_label,
    by_number,
    choice_question,
    has,
    identified,
    most_fitting,
    read_questions,
    read_rows,
)
from medsft.errors import DataError

_MEDMCQA_OPTIONS = ("opa", "opb", "opc", "opd")
_MMLU_COLUMNS = ("question", "a", "b", "c", "d", "answer")
_MMLU_OPTIONS = _MMLU_COLUMNS[1:-1]
_HEAD_BYTES = 2**16


def read_medqa(path: Path) -> Task:
    """Read MedQA. Raises DataError."""
    shapes = [
        Shape(("question", "options", "answer_idx"), _medqa_with_label),
        Shape(("question", "options", "answer"), _medqa_with_text),
        Shape(("sent1", "ending0", "ending1", "label"), _medqa_of_the_hub),
    ]
    rows = read_rows(open_rows(path))
    questions = read_questions(rows, shapes, "MedQA", path)
    return _task("medqa", "MedQA", rows, questions, path)


def _medqa_with_label(row: TaskRow) -> Question:
    options = options_of(row.fields, ["options"])
    right = by_label(under(row.fields, "answer_idx"), options, "answer_idx")
    answer = found(row.fields, "answer")[1]
    if isinstance(answer, str) and answer.strip() != options[right].text and answer.strip() in [one.text for one in options]:
        raise BadRow("'answer' and 'answer_idx' mean two options")
    return choice_question(row, question_of(row.fields, "question"), options, right)


def _medqa_with_text(row: TaskRow) -> Question:
    options = options_of(row.fields, ["options"])
    answer = text(row.fields, "answer").strip()
    meant = [place for place, option in enumerate(options) if option.text == answer]
    if len(meant) > 1:
        raise BadRow("'answer' is the text of several options")
    right = meant[0] if meant else by_label(answer, options, "answer")
    return choice_question(row, question_of(row.fields, "question"), options, right)


def _medqa_of_the_hub(row: TaskRow) -> Question:
    keys = [key for number in range(26) if has(row.fields, key := f"ending{number}")]
    options = options_of(row.fields, keys)
    label = under(row.fields, "label")
    if label == -1:
        raise BadRow("no answer under 'label' (-1): a test file without answers")
    second = found(row.fields, "sent2")[1]
    question = question_of(row.fields, "sent1") + (f" {second}" if isinstance(second, str) and second.strip() else "")
    return choice_question(row, question, options, by_number(label, 0, options, "label"))


def read_medmcqa(path: Path) -> Task:
    """Read MedMCQA. Where `cop` counts from is told by the smallest and the largest one of the file. Raises DataError."""
    rows = read_rows(open_rows(path))
    keys = ("question", "opa", "opb")
    most_fitting(rows, [keys], "MedMCQA", path)
    first, why = _first_number(path, rows)

    def read(row: TaskRow) -> Question:
        options = options_of(row.fields, _MEDMCQA_OPTIONS)
        right = by_number(under(row.fields, "cop"), first, options, "cop")
        return choice_question(row, question_of(row.fields, "question"), options, right)

    questions = read_questions(rows, [Shape(keys, read)], "MedMCQA", path)
    task = _task("medmcqa", "MedMCQA", rows, questions, path)
    return replace(task, notes=(why, *task.notes))


def _first_number(path: Path, rows: Sequence[TaskRow]) -> tuple[int, str]:
    """Return from which number `cop` counts the options in a file, and a sentence that says so. Raises DataError."""
    values = [found(row.fields, "cop")[1] for row in rows]
    given = [number for value in values if (number := number_of(value)) is not None]
    if not given and any(value not in (None, "") for value in values):
        raise DataError(
            f"{path}: `cop` is a number in no row, and MedMCQA's is one in each",
            hint=f"where it is the letter or the text of the right option, ask questions of your own: --task {path}",
        )
    if not any(number >= 0 for number in given):
        raise DataError(
            f"{path}: no row has a right option (`cop`): this is a test file of MedMCQA, whose answers are not public",
            hint="evaluate on the validation file, as everybody does",
        )
    least, most = min(given), max(given)
    if least == 0 and most <= 3:
        return 0, f"`cop` is 0 to {most} in the file, so options count from 0, as on the hub."
    if least >= 1 and most == 4:
        return 1, f"`cop` is {least} to 4 in the file, so options count from 1, as in the authors' files."
    if least >= 1 and most <= 3:
        reason = "0 to 3 and 1 to 4 are both possible"
        hint = "evaluate on the whole file, or on a larger part of it: one 0 or one 4 tells where options count from"
    else:
        reason = "that is neither 0 to 3 nor 1 to 4"
        hint = "rows without an answer have to go, and files of different origin must not be mixed"
    raise DataError(f"{path}: `cop` is {least} to {most} in the whole file: {reason}", hint=hint)


def read_mmlu(path: Path) -> Task:
    """Read MMLU, one subject or many; `path` may be a folder with a `SUBJECT_test.csv` for each. Raises DataError."""
    if not path.is_dir():
        return _read_mmlu_file(path)
    files = _test_files(path) or _test_files(path / "test")
    if not files:
        raise DataError(f"{path} holds no SUBJECT_test.csv", hint="name the folder of MMLU's test files, or one file")
    tasks = [_read_mmlu_file(file) for file in files]
    solved = all(task.examples_in_order for task in tasks)
    return replace(
        tasks[0],
        questions=tuple(
            replace(question, id=f"{without_ending(file.name)}/{question.id}")
            for file, task in zip(files, tasks, strict=True)
            for question in task.questions
        ),
        examples=tuple(question for task in tasks for question in task.examples) if solved else (),
        examples_of=tasks[0].examples_of if solved else "",
        examples_in_order=solved,
        files=tuple(file for task in tasks for file in task.files),
        notes=(f"{len(files)} subjects.",),
    )


def _test_files(folder: Path) -> list[Path]:
    """Return the test files of a folder, each subject once, packed or not; no hidden ones, which some archives leave."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*_test.csv*")):
        stem = without_ending(path.name)
        if stem.endswith("_test") and not path.name.startswith("."):
            found.setdefault(stem, path)
    return list(found.values())


def _read_mmlu_file(path: Path) -> Task:
    rows, questions = _mmlu_questions(path)
    stem = without_ending(path.name)
    subject, dev_name = re.sub("_(test|val|dev)$", "", stem), ""
    if subject != stem or has(rows[0].fields, "a"):
        dev_name = f"{subject}_dev{path.name[len(stem) :]}"
    else:
        subject = ""  # the name of a file from elsewhere is none
    task = _task("mmlu", "MMLU", rows, _about(questions, subject), path)
    if not all(question.subject for question in task.questions):
        task = replace(task, notes=("Not all rows name a subject: those without are asked without the sentence that says it.",))
    for dev in (path.with_name(dev_name), path.parent.parent / "dev" / dev_name) if dev_name else ():
        if dev.is_file() and dev != path:
            solved = tuple(_about(_mmlu_questions(dev)[1], subject))
            return replace(task, examples=solved, examples_of="the subject's dev file", examples_in_order=True)
    return task


def _about(questions: Sequence[Question], subject: str) -> list[Question]:
    """Return questions with a subject: their own, or that of their file."""
    return [replace(question, subject=question.subject or subject) for question in questions]


def _mmlu_questions(path: Path) -> tuple[list[TaskRow], list[Question]]:
    shapes = [
        Shape(("question", "choices", "answer"), _mmlu_of_the_hub),
        Shape(_MMLU_COLUMNS, _mmlu_row),
    ]
    rows = read_rows(_without_names(path) or open_rows(path))
    return rows, read_questions(rows, shapes, "MMLU", path)


def _without_names(path: Path) -> RowSource | None:
    """Return the rows of a CSV file whose first row is a question already; None for any other file."""
    with open_stream(path) as (stream, _):
        whole = stream.read(_HEAD_BYTES)
    head = whole.removeprefix(BOM)
    if head.lstrip()[:1] in (b"{", b"["):
        return None
    dialect = Dialect(",")
    first = next(iter(dialect.records(head.decode("utf-8", "replace"))), None)
    if first is None or isinstance(first.cells, BadRow) or len(first.cells) != len(_MMLU_COLUMNS):
        return None
    if first.cells[-1].strip() not in ("A", "B", "C", "D"):
        return None
    return CsvSource(path, dialect, _MMLU_COLUMNS, len(whole) - len(head), 1)


def _mmlu_row(row: TaskRow) -> Question:
    options = options_of(row.fields, _MMLU_OPTIONS)
    return choice_question(row, question_of(row.fields, "question"), options, by_label(row.fields["answer"], options, "answer"))


def _mmlu_of_the_hub(row: TaskRow) -> Question:
    options = options_of(row.fields, ["choices"])
    answer = under(row.fields, "answer")
    lettered = isinstance(answer, str) and not answer.strip().isdecimal()
    right = by_label(answer, options, "answer") if lettered else by_number(answer, 0, options, "answer")
    return choice_question(row, question_of(row.fields, "question"), options, right)


def _task(name: str, title: str, rows: Sequence[TaskRow], questions: Sequence[Question], path: Path) -> Task:
    ids = identified(questions, rows)
    named = tuple(replace(question, id=id_) for question, id_ in zip(questions, ids, strict=True))
    return Task(name=name, title=title, kind="choice", questions=named, files=(path,))
