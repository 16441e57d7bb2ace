"""Questions of one's own, in a file of rows: with options, or with an answer in words.

{"question", "options", "answer"}        any row that --format mcq reads
{"question", "answer"}                   any row with a question and an answer

Keys that are called otherwise are named by the options of a run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from medsft.core.data.sources.base import BadRow
from medsft.core.data.sources.endings import without_ending
from medsft.core.data.sources.multiple_choice import Option, choice_of
from medsft.core.data.sources.open import open_rows
from medsft.core.data.sources.recognize import NOTHING_SAID, recognize
from medsft.core.data.sources.row_looks import RowOptions
from medsft.core.evaluation.benchmark import Question, Task
from medsft.core.evaluation.tasks.rows import Shape, TaskRow, choice_question, identified, read_questions, read_rows, row_id
from medsft.errors import DataError

_REMEDY = (
    "give all rows question, options and answer, where answer is the letter or the text of the right option; or question and "
    "answer, without options; other keys are named by --question_key, --answer_key and --options_key, and --first_option says "
    "from which number options count"
)


def read_own(path: Path, reserved: Collection[str] = (), wanted: RowOptions = NOTHING_SAID) -> Task:
    """Read questions of one's own; the task bears the name of the file, but none of `reserved`. `wanted` names their keys.

    Raises DataError, also for rows that hold no questions.
    """
    rows = read_rows(open_rows(path))
    try:
        recognized = recognize([path], wanted)
    except DataError as error:
        raise DataError(error.message, hint=_REMEDY) from None  # of the options of a run few are at hand here
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
    questions = read_questions(rows, [Shape((), with_options if choices else open_question)], "questions", path, _REMEDY)
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


def named_apart(tasks: Sequence[Task]) -> list[Task]:
    """Return tasks of which those of files that are called alike have names of their own: more of their paths.

    The same file twice keeps one name, and so do two files for one benchmark that is known by name.
    """
    named = list(tasks)
    for longer in (_whole_name, _with_folder):
        times = Counter(task.name for task in named)
        for place, task in enumerate(named):
            if times[task.name] > 1 and not task.source:
                named[place] = replace(task, name=longer(task.files[0]), title=str(task.files[0]))
    return named


def _whole_name(path: Path) -> str:
    return without_ending(path.name)


def _with_folder(path: Path) -> str:
    return f"{path.resolve().parent.name}-{path.name}"
