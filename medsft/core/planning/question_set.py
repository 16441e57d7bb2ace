"""Questions of benchmarks on disk, as token ids: for the ranks of a run, which ask them at each validation.

    TOKENIZED_DATA_DIR/questions/NAME-FINGERPRINT.npz

No text is in the file. A document is what comes before an answer, and of an option of several tokens all but the last:
a scored token is predicted by the token of the document before it. Options of one token share a document.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from medsft.core.files import new_file
from medsft.core.planning.tasks import TaskPlan
from medsft.errors import DataError

_FOLDER = "questions"
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionSet:
    """Questions as the engine gets them. All arrays are int64."""

    tokens: Integers
    """Of all documents, end to end."""
    lengths: Integers
    """Tokens of each document, [documents]."""
    documents: Integers
    """Document of each scored token, [scored]."""
    rows: Integers
    """Place in its document of the token before each scored one, [scored]."""
    labels: Integers
    """The scored tokens, [scored]."""
    options: Integers
    """The option that each scored token is a part of, numbered over all questions, [scored]."""
    num_options: Integers
    """Of each question, [questions]."""
    gold: Integers
    """Place of the right option among those of its question, [questions]."""

    def fingerprint(self) -> str:
        """Return the SHA-256 of all arrays."""
        digest = hashlib.sha256()
        for f in fields(self):
            array = np.ascontiguousarray(getattr(self, f.name), "<i8")
            digest.update(f"{f.name} {len(array)}\n".encode() + array.tobytes())
        return digest.hexdigest()


def questions_path(folder: Path, task: TaskPlan) -> Path:
    """Return where the questions of a task lie, beside the tokenized sets in `folder`."""
    return folder / _FOLDER / f"{task.name}-{task.fingerprint[:16]}.npz"


def write_questions(folder: Path, task: TaskPlan, questions: QuestionSet) -> None:
    """Write the questions of a task unless they are there. Raises OSError."""
    path = questions_path(folder, task)
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as stream:
        np.savez(stream, **{f.name: getattr(questions, f.name).astype(np.int64) for f in fields(questions)})


def read_questions(folder: Path, task: TaskPlan) -> QuestionSet:
    """Return the questions of a task. Raises DataError where they are not there as they were written."""
    path = questions_path(folder, task)
    remedy = "type the `medsft sft` command of the run again: it prepares them anew"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            questions = QuestionSet(**{f.name: arrays[f.name] for f in fields(QuestionSet)})
    except FileNotFoundError:
        raise DataError(f"{path}: the questions of --eval_task {task.name} are not there any more", hint=remedy) from None
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        raise DataError(f"{path} is damaged", hint=f"delete it, and {remedy}") from None
    if questions.fingerprint() != task.fingerprint:
        raise DataError(f"{path} is damaged: these are not the questions that were planned", hint=f"delete it, and {remedy}")
    return questions
