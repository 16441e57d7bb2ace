"""Benchmarks that a run is asked at each validation (`--eval_task`): read, and prepared once, ahead.

    files --read--> Task --asking--> Score requests --> QuestionSet, on disk beside the tokenized sets

A question is asked as `medsft eval` asks it of the run: in the template of the run, the options scored by their labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from medsft.core.config.eval_tasks import EvalTask, eval_tasks
from medsft.core.config.run_config import RunConfig
from medsft.core.data.dataset.manifest import hash_inputs
from medsft.core.data.sources.row_looks import RowOptions
from medsft.core.data.tokenizers.base import OpenedTokenizer
from medsft.core.disk import writing_to
from medsft.core.evaluation.asking import Ask, asking
from medsft.core.evaluation.benchmark import Task, first_by_hash
from medsft.core.evaluation.during_training import question_set
from medsft.core.evaluation.model import open_for_prompts
from medsft.core.evaluation.requests import Score
from medsft.core.evaluation.tasks.read import read_task
from medsft.core.models.run_folder import PLAN_NAME
from medsft.core.planning.plan import RunPlan
from medsft.core.planning.planner import make_plan
from medsft.core.planning.question_set import QuestionSet, questions_path, write_questions
from medsft.core.planning.tasks import TaskPlan
from medsft.core.settings import Settings
from medsft.errors import DataError, ExitCode, MismatchError


def plan_run(config: RunConfig, settings: Settings, *, ahead: bool = False) -> RunPlan:
    """Return the plan of a run, see `make_plan`, with the benchmarks of `--eval_task`.

    Their questions are prepared and written beside the tokenized sets, but not `ahead`. Raises what `make_plan` raises, and
    DataError for a benchmark that cannot be read or asked.
    """
    return with_tasks(make_plan(config, settings, ahead=ahead), ahead=ahead)


def with_tasks(plan: RunPlan, *, ahead: bool) -> RunPlan:
    """Return a plan with the benchmarks of its `--eval_task`, as `plan_run` does."""
    config = plan.config
    if not config.eval_task:
        return plan
    if ahead and not plan.base.tokenizer:
        warning = "--eval_task: there is no tokenizer beside the base model, so the questions are not counted."
        return replace(plan, warnings=(*plan.warnings, warning))
    named = eval_tasks(config.eval_task)
    read = read_tasks(config)
    data = [tuple(file.sha256 for file in hash_inputs(task.files)) for task in read]
    if (planned := _planned(plan, named, data)) is not None:
        return replace(plan, tasks=planned)
    opened = open_for_prompts(Path(plan.base.tokenizer), config.template, config.template_date or "")
    folder, tasks = Path(plan.train.folder).parent, []
    for one, whole, hashes in zip(named, read, data, strict=True):
        task, questions = _prepared(one.name, whole, plan, opened, hashes)
        if not ahead:
            with writing_to(folder, ExitCode.DATA):
                write_questions(folder, task, questions)
        tasks.append(task)
    return replace(plan, tasks=tuple(tasks))


def read_tasks(config: RunConfig) -> list[Task]:
    """Return the benchmarks of `--eval_task` in their order. Raises DataError for one that cannot be read or asked."""
    return [_read(one, config) for one in eval_tasks(config.eval_task)]


def _read(one: EvalTask, config: RunConfig) -> Task:
    """Read a benchmark by the usual keys of its rows, and where they have none, by those that the run's rows have."""
    try:
        task = read_task(one.name, one.path)
    except DataError:
        wanted = RowOptions.of(config.format, config.row_options)
        if not wanted.given:
            raise
        task = read_task(one.name, one.path, wanted=wanted)
    if task.kind == "open":
        raise DataError(
            f"{one.path}: its questions have no options, of which --eval_task {one.name} takes the most likely one",
            hint="give questions with options; written answers are for `medsft eval`, after the training",
        )
    return task


def _planned(plan: RunPlan, named: Sequence[EvalTask], data: Sequence[tuple[str, ...]]) -> tuple[TaskPlan, ...] | None:
    """Return the benchmarks of the run that is in the plan's folder where they were prepared from the same, else None.

    A template may write the date of the day into each prompt: a run goes on with the prompts that it began with.
    """
    with suppress(MismatchError):
        before = RunPlan.read(Path(plan.run_dir) / PLAN_NAME)
        made_from = [(task.name, task.limit, task.data) for task in before.tasks]
        wanted = [(one.name, plan.config.eval_limit, hashes) for one, hashes in zip(named, data, strict=True)]
        folder = Path(plan.train.folder).parent
        there = all(questions_path(folder, task).is_file() for task in before.tasks)
        if made_from == wanted and there and _prompts(before) == _prompts(plan):
            return before.tasks
    return None


def _prompts(plan: RunPlan) -> tuple[object, ...]:
    """Return what decides how a question becomes tokens."""
    config = plan.config
    return config.template, config.template_date, plan.base.fingerprint, plan.base.model.vocab_size, plan.base.model.context


def _prepared(
    name: str, whole: Task, plan: RunPlan, opened: OpenedTokenizer, data: tuple[str, ...]
) -> tuple[TaskPlan, QuestionSet]:
    task = first_by_hash(whole, plan.config.eval_limit)
    asked = asking(task, Ask(forms=("label",)), opened, ends=(), longest=plan.base.model.context)
    requests = [request for request in asked.requests if isinstance(request, Score)]
    questions = question_set(requests, [question.gold for question in task.questions])
    gold = Counter(question.gold_label for question in task.questions)
    planned = TaskPlan(
        name=name,
        title=task.title,
        questions=len(task.questions),
        available=len(whole.questions),
        majority=max(gold.values()) / len(task.questions),
        tokens=len(questions.tokens),
        longest=int(questions.lengths.max()),
        cut=asked.cut,
        limit=plan.config.eval_limit,
        data=data,
        notes=tuple(filter(None, (task.source, *task.notes))),
        fingerprint=questions.fingerprint(),
    )
    return planned, questions
