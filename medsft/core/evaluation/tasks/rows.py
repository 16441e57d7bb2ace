"""Rows of a benchmark's file, and questions out of them: what cannot be used is named by file and row, never by its text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medsft.core.data.sources.bad_rows import BadRows
from medsft.core.data.sources.base import BadRow, RowSource, all_rows
from medsft.core.data.sources.columns import find, names, shown
from medsft.core.data.sources.multiple_choice import Option, letters_of, number_of, whole
from medsft.core.evaluation.benchmark import Question, unique_ids
from medsft.errors import DataError

_LONGEST_ID = 64
_REMEDY = "correct these rows, or leave them out of the file"
Fields = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class TaskRow:
    """One row of a benchmark."""

    number: int
    place: str
    fields: Fields


@dataclass(frozen=True, slots=True)
class Shape:
    """One way in which people have a benchmark."""

    keys: tuple[str, ...]
    """That each row of this shape has"""
    read: Callable[[TaskRow], Question]
    """Raises BadRow"""


def read_rows(source: RowSource) -> list[TaskRow]:
    """Return all rows of a file. Raises DataError for a file without rows, and for rows that cannot be parsed."""
    rows, bad = [], BadRows()
    for row in all_rows(source):
        place = source.place(row.number)
        try:
            rows.append(TaskRow(row.number, place, row.fields()))
        except BadRow as error:
            bad.add(place, error)
    if bad.total:
        raise _unusable(bad, "correct them")
    if not rows:
        raise DataError(f"{source.path} holds no row", hint="the file is empty, or has blank lines only")
    return rows


def read_questions(
    rows: Sequence[TaskRow], shapes: Sequence[Shape], what: str, path: Path, remedy: str = _REMEDY
) -> list[Question]:
    """Return the question of each row, read as the shape that most rows have. `what` names the benchmark.

    Raises DataError for a file of none of the shapes, and for rows that cannot be used.
    """
    shape = shapes[most_fitting(rows, [shape.keys for shape in shapes], what, path)]
    questions, bad = [], BadRows()
    for row in rows:
        try:
            questions.append(shape.read(row))
        except BadRow as error:
            bad.add(row.place, error)
    if bad.total:
        raise _unusable(bad, remedy)
    return questions


def most_fitting(rows: Sequence[TaskRow], shapes: Sequence[tuple[str, ...]], what: str, path: Path) -> int:
    """Return of which of the shapes, told by their keys, most rows are. Raises DataError where no row is of any."""
    fitting = [sum(all(has(row.fields, key) for key in keys) for row in rows) for keys in shapes]
    if not any(fitting):
        known = "; or ".join(shown(keys) for keys in shapes)
        raise DataError(
            f"{path} holds no rows of {what}: the first row has {shown(names(rows[0].fields))}",
            hint=f"rows of {what} have {known}; other questions are read by: --task {path}",
        )
    return fitting.index(max(fitting))


def _unusable(bad: BadRows, remedy: str) -> DataError:
    return DataError(bad.error(then="so nothing was asked").message, hint=remedy)


def has(fields: Fields, key: str) -> bool:
    """Whether a row has a key with something under it."""
    there, value = find(fields, key)
    return there and value is not None


def identified(questions: Sequence[Question], rows: Sequence[TaskRow]) -> list[str]:
    """Return the id of each question: that of its row where it is one, see `Question.id`."""
    return unique_ids([question.id or None for question in questions], [row.number for row in rows])


def row_id(fields: Fields, *keys: str) -> str:
    """Return the id that a row has under the first of these keys, or ""; a long text is none."""
    for key in keys:
        there, value = find(fields, key)
        number = whole(value)
        if number is not None:
            return str(number)
        if there and isinstance(value, str) and 0 < len(value) <= _LONGEST_ID and len(value.split()) == 1:
            return value
    return ""


def subject_of(fields: Fields) -> str:
    """Return the subject that a row names, or ""."""
    for key in ("subject", "subject_name"):
        there, value = find(fields, key)
        if there and isinstance(value, str) and len(value) <= _LONGEST_ID:
            return value.strip()
    return ""


def choice_question(row: TaskRow, question: str, options: Sequence[Option], right: int, *, id: str = "") -> Question:
    """Return a question with those of its options that have a text. Raises BadRow when the right one has none."""
    if not options[right].text:
        raise BadRow("the right option is empty")
    kept = [place for place, option in enumerate(options) if option.text]
    letters = letters_of(options)
    return Question(
        id=id or row_id(row.fields, "id", "question_id", "qid"),
        place=row.place,
        question=question,
        options=tuple(options[place].text for place in kept),
        written=tuple(options[place].written for place in kept),
        labels=tuple(letters[place] for place in kept),
        lettered=True,
        gold=kept.index(right),
        subject=subject_of(row.fields),
    )


def by_number(value: object, first: int, options: Sequence[Option], key: str) -> int:
    """Return the place of the option with a number, where the first has `first`. Raises BadRow."""
    number = number_of(value)
    if number is None:
        raise BadRow(f"'{key}' is no number of an option")
    if not 0 <= number - first < len(options):
        raise BadRow(f"'{key}' is the number of no option")
    return number - first


def by_label(value: object, options: Sequence[Option], key: str) -> int:
    """Return the place of the option with a label such as B. Raises BadRow."""
    wanted = value.strip().upper() if isinstance(value, str) else ""
    letters = letters_of(options)
    if not wanted or wanted not in letters:
        raise BadRow(f"'{key}' is the label of no option")
    return letters.index(wanted)
