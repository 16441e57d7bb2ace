"""Questions of one's own, in a file of rows: with options, or with an answer in words.

{"question", "options", "answer"}        any row that --format mcq reads
{"question", "answer"}                   any row with a question and an answer
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from medsft.core.data.sources.base import BadRow
from medsft.core.data.sources.multiple_choice import Option, choice_of
from medsft.core.data.sources.open import open_rows
from medsft.core.data.sources.recognize import recognize
from medsft.core.evaluation.benchmark import Question, Task
from medsft.core.evaluation.tasks.rows import Shape, TaskRow, choice_question, identified, read_questions, read_rows, row_id
from medsft.errors import DataError


def read_own(path: Path, reserved: Collection[str] = ()) -> Task:
    """Read questions of one's own; the task bears the name of the file, but none of `reserved`.

    Raises DataError, also for rows that hold no questions.
    """
    recognized = recognize([path])
    row_format = recognized.each[0].rows
    if row_format.name == "text":
        raise DataError(f"{path}: rows of plain text ask nothing", hint="rows need a question and an answer")

    def with_options(row: TaskRow) -> Question:
        choice = choice_of(row.fields, row_format.keys)
        options = [
            Option(letter, option.text, option.written) for letter, option in zip(choice.letters, choice.options, strict=True)
        ]
        return choice_question(row, choice.question, options, choice.right)

    def open_question(row: TaskRow) -> Question:
        conversation = row_format.conversation(row.fields)
        users = [message.content for message in conversation if message.role == "user"]
        answers = [message.content for message in conversation if message.role == "assistant"]
        if len(users) != 1 or len(answers) != 1:
            raise BadRow("not one question and one answer")
        if not answers[0].strip():
            raise BadRow("the answer is empty")
        system = "\n".join(message.content for message in conversation if message.role == "system")
        id_ = row_id(row.fields, "id", "question_id")
        return Question(id=id_, place=row.place, question=users[0], system=system, answer=answers[0])

    choices = row_format.name == "mcq"
    rows = read_rows(open_rows(path))
    questions = read_questions(rows, [Shape((), with_options if choices else open_question)], "questions", path)
    ids = identified(questions, rows)
    name = path.name.split(".")[0]
    return Task(
        name=f"{name}-file" if name in reserved else name,
        title=path.name,
        kind="choice" if choices else "open",
        questions=tuple(replace(question, id=id_) for question, id_ in zip(questions, ids, strict=True)),
        files=(path,),
        notes=recognized.sentences,
    )
