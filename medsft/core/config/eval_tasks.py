"""What people write after `--eval_task` and `--keep_best`: NAME=FILE; loss, accuracy:NAME or none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from medsft.core.files import at_home
from medsft.errors import Problem

DEFAULT_LIMIT = 200
KEEP_BEST = ("loss", "none")
_ACCURACY = "accuracy:"
_EXAMPLE = "Such as --eval_task pubmedqa=ori_pqal.json; NAME is a benchmark that is known, or one that you choose."


class EvalTask(NamedTuple):
    """A benchmark that a run is asked at each validation."""

    name: str
    """One of `evaluation.tasks.read.BENCHMARKS`, or a name for questions of one's own"""
    path: Path


def eval_tasks(typed: Sequence[str]) -> tuple[EvalTask, ...]:
    """Return the benchmarks that `--eval_task` names; items that `check_eval_tasks` refuses have an empty name or path."""
    return tuple(EvalTask(name, at_home(Path(path))) for name, _, path in (item.partition("=") for item in typed))


def best_task(keep_best: str) -> str | None:
    """Return the benchmark whose accuracy decides which checkpoint is the best, None where the loss does, or nothing."""
    return keep_best.removeprefix(_ACCURACY) if keep_best.startswith(_ACCURACY) else None


def by_accuracy(name: str) -> str:
    """Return the value of `--keep_best` by which the accuracy of a benchmark decides."""
    return f"{_ACCURACY}{name}"


def check_eval_tasks(typed: Sequence[str], keep_best: str, *, limit_given: bool) -> list[Problem]:
    """Return what is wrong with `--eval_task`, `--eval_limit` and `--keep_best`."""
    found, problems = eval_tasks(typed), []
    for item, task in zip(typed, found, strict=True):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", task.name) or "=" not in item or item.endswith("="):
            problems.append(Problem("--eval_task", f"`{item}` is not NAME=FILE", _EXAMPLE))
    names = [task.name for task in found]
    problems += [
        Problem("--eval_task", f"`{name}` is given twice", "Give each benchmark a name of its own.")
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    if limit_given and not typed:
        problems.append(Problem("--eval_limit", "is used only with --eval_task", "Give a benchmark, or leave it away."))
    return problems + _check_keep_best(keep_best, names)


def _check_keep_best(keep_best: str, names: Sequence[str]) -> list[Problem]:
    where, wanted = "--keep_best", best_task(keep_best)
    if wanted is None:
        if keep_best in KEEP_BEST:
            return []
        choices = f"Write loss, none, or {_ACCURACY}NAME for the accuracy of an --eval_task."
        return [Problem(where, f"`{keep_best}` is not a measure", choices)]
    if wanted in names:
        return []
    known = f", or take one that is: {', '.join(map(by_accuracy, names))}" if names else ""
    return [Problem(where, f"`{wanted}` is not asked during training", f"Add --eval_task {wanted or 'NAME'}=FILE{known}.")]
