"""What the wizard asks of the core: slow functions for worker threads, and what they return.

Imports of settings, planner and tokenizers stand inside the functions, so that the first page paints before them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from medsft.core.config.run_config import RunConfig
from medsft.core.run.rundir import RunDir
from medsft.errors import ConfigError, MedsftError, Problem

if TYPE_CHECKING:
    from medsft.core.data.check.report import CheckReport
    from medsft.core.data.dataset.lengths import LengthReport
    from medsft.core.data.dataset.samples import Sample
    from medsft.core.data.dataset.spec import TokenizeSpec
    from medsft.core.data.dataset.write import Progress
    from medsft.core.data.sources.columns import KeyProposal
    from medsft.core.data.sources.recognize import RecognizedFiles
    from medsft.core.data.sources.row_format import RowFormat
    from medsft.core.data.tokenizers.base import OpenedTokenizer
    from medsft.core.forecast import Forecast
    from medsft.core.models.inspect import BaseModel
    from medsft.core.models.scanning import Found
    from medsft.core.planning.plan import RunPlan
    from medsft.core.planning.tasks import TaskPlan
    from medsft.core.settings import CheckpointEntry, Settings

_SHOWN_SAMPLES = 2
"""Of rows of one format; of several at least one of each"""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseEntry:
    """A base model to choose from."""

    name: str
    size: float
    path: Path
    listed: bool
    """In medsft.toml already."""
    base: BaseModel | None = None
    problem: str = ""
    """Why it cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What the core makes of a config that is still being filled in."""

    config: RunConfig
    problems: tuple[Problem, ...] = ()
    plan: RunPlan | None = None
    disk_free: int = 0
    """Bytes, where the plan's run would be."""
    exact: bool = False
    """Whether the documents were counted in a tokenized set."""
    forecast: Forecast | None = None
    """How long the run will take; None where nothing like it has run yet."""
    keys: KeyProposal | None = None
    found: RecognizedFiles | None = None
    """How the rows of each file are read; None while that cannot be told."""
    sets: tuple[str, ...] = ()
    """Tokenized sets that exist."""
    report: LengthReport | None = None
    samples: tuple[Sample, ...] = ()
    samples_problem: str = ""


def base_entries(settings_file: Path | None) -> list[BaseEntry]:
    """Return the models of medsft.toml with what a look at each says. Raises `ConfigError` when the file is wrong."""
    from medsft.core.models.adapter_base import base_to_begin_with
    from medsft.core.settings import load_settings

    def entry(listed: CheckpointEntry) -> BaseEntry:
        try:
            base, problem = base_to_begin_with(listed.path, listed.base), ""
        except MedsftError as error:
            base, problem = None, error.message
        return BaseEntry(name=listed.name, size=listed.size, path=listed.path, listed=True, base=base, problem=problem)

    return [entry(listed) for listed in load_settings(settings_file).checkpoints.values()]


def find_bases(path: Path) -> list[BaseEntry]:
    """Return the checkpoint at a path, or all in the folder and below it. Raises `ConfigError` when there is no such folder."""
    from medsft.core.models.scanning import scan

    def entry(found: Found) -> BaseEntry:
        return BaseEntry(name=found.name, size=found.size, path=found.base.path, listed=False, base=found.base)

    if path.is_file():
        wanted = path.resolve()
        return [entry(found) for found in scan(path.parent) if found.base.path.resolve() == wanted]
    return [entry(found) for found in scan(path)]


def add_base(entry: BaseEntry, settings_file: Path | None) -> Path:
    """Write a model that was found into the settings, and return their file. Raises `MedsftError` or `OSError`."""
    from medsft.core.settings import add_checkpoint, project_file

    file = settings_file or project_file()
    add_checkpoint(file, entry.name, entry.size, entry.path)
    return file


def look_ahead(config: RunConfig, settings_file: Path | None, *, samples: bool) -> Outlook:
    """Plan what can be planned. What a person got wrong is in `problems`; `samples` asks for decoded rows too."""
    from medsft.core.forecast import forecast
    from medsft.core.planning.folders import free_bytes
    from medsft.core.planning.planner import preview
    from medsft.core.planning.sets import list_sets
    from medsft.core.settings import load_settings

    try:
        settings = load_settings(settings_file)
    except ConfigError as error:
        return Outlook(config=config, problems=error.problems)
    found = preview(config, settings)
    plan, wrong_tasks = _with_benchmarks(found.plan) if found.plan else (None, ())
    shown, trouble = _samples(config, settings) if samples else ((), "")
    return Outlook(
        config=config,
        problems=_tidied((*found.problems, *wrong_tasks)),
        plan=plan,
        disk_free=free_bytes(Path(plan.run_dir)) if plan else 0,
        exact=found.exact,
        forecast=forecast(plan) if plan else None,
        keys=_keys(config),
        found=_found(config),
        sets=list_sets(config.tokenized_data_dir),
        report=_report(config),
        samples=shown,
        samples_problem=trouble,
    )


@dataclass(frozen=True, slots=True)
class _Benchmarks:
    """The benchmarks of a plan, and what they follow from."""

    key: tuple[object, ...]
    plan: RunPlan = field(compare=False)


def _with_benchmarks(plan: RunPlan) -> tuple[RunPlan, Sequence[Problem]]:
    """Return a plan with the benchmarks of its --eval_task, and what is wrong with them."""
    from medsft.core.config.eval_tasks import eval_tasks

    config = plan.config
    if not config.eval_task:
        return plan, ()
    files = tuple(_stamps(task.path) for task in eval_tasks(config.eval_task))
    how = config.eval_limit, config.template, config.template_date
    base = plan.base.path, plan.base.tokenizer, plan.base.fingerprint
    tasks, warnings, problems = _benchmarks(_Benchmarks((config.eval_task, files, *how, *base, plan.run_dir), plan))
    return replace(plan, tasks=tasks, warnings=(*plan.warnings, *warnings)), problems


def _stamps(path: Path) -> tuple[object, ...]:
    """Return sizes and times of what a benchmark is read from, by which a change is seen."""
    from medsft.core.evaluation.tasks.pubmedqa import TRUTH_NAME

    files = [*path.glob("*.*"), *path.glob("test/*.*")] if path.is_dir() else [path, path.with_name(TRUTH_NAME)]
    status = [file.stat() for file in sorted(files) if file.is_file()]
    return tuple((one.st_size, one.st_mtime_ns) for one in status)


@lru_cache(maxsize=2)
def _benchmarks(asked: _Benchmarks) -> tuple[tuple[TaskPlan, ...], tuple[str, ...], tuple[Problem, ...]]:
    """Return the benchmarks, what to know of them, and what is wrong; remembered, for each edit of a form asks anew."""
    from medsft.core.evaluation.tasks.of_run import with_tasks

    try:
        found = with_tasks(asked.plan, ahead=True)
    except MedsftError as error:
        problems = error.problems if isinstance(error, ConfigError) else (Problem("--eval_task", error.message, error.hint),)
        return (), (), tuple(problems)
    return found.tasks, found.warnings[len(asked.plan.warnings) :], ()


def _tidied(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Return each problem once, under the flag that its message begins with."""
    tidied = []
    for problem in problems:
        flag, colon, message = problem.message.partition(": ")
        own = colon and flag.startswith("--") and " " not in flag
        tidied.append(Problem(flag, message, problem.hint) if own else problem)
    return tuple(dict.fromkeys(tidied))


def _keys(config: RunConfig) -> KeyProposal | None:
    from medsft.core.data.sources.read import propose_keys

    try:
        return propose_keys(config.data_files[0]) if config.data else None
    except (MedsftError, OSError):
        return None  # the plan names the problem


def _found(config: RunConfig) -> RecognizedFiles | None:
    from medsft.core.planning.sets import recognize_rows

    try:
        return recognize_rows(config) if config.data_files else None
    except (MedsftError, OSError, ValueError):
        return None  # the plan names the problem


def _report(config: RunConfig) -> LengthReport | None:
    from medsft.core.data.dataset.dataset import open_tokenized, set_exists
    from medsft.core.data.dataset.lengths import length_report

    folder = config.tokenized_data_dir / config.run_name
    try:
        if not config.run_name or not set_exists(folder):
            return None
        return length_report(open_tokenized(folder), config.seq, turns=config.turns, whole_turns=config.rules.cuts_whole_turns)
    except MedsftError:
        return None


def _samples(config: RunConfig, settings: Settings) -> tuple[tuple[Sample, ...], str]:
    """Return the first rows as the model would read them, or why that cannot be shown."""
    try:
        return _read_samples(config, settings), ""
    except MedsftError as error:
        return (), error.message


@lru_cache(maxsize=1)
def _opened(spec: TokenizeSpec) -> OpenedTokenizer:
    return spec.open_tokenizer()


def _read_samples(config: RunConfig, settings: Settings) -> tuple[Sample, ...]:
    from medsft.core.data.dataset.samples import conversation_samples
    from medsft.core.data.dataset.subset import Reading
    from medsft.core.data.sources.conversation import parts_up_to_answers
    from medsft.core.data.sources.read import read_conversations
    from medsft.core.data.sources.row_format import format_of
    from medsft.core.planning.sets import recognize_rows
    from medsft.core.workflow import spec_for

    if not config.data:
        return ()
    spec = spec_for(config, settings)
    opened = _opened(spec)
    rows = recognize_rows(config).rows_of(config.data_files)
    of_format: dict[RowFormat, list[Path]] = {}
    for file, path in enumerate(config.data_files):
        of_format.setdefault(format_of(rows, file), []).append(path)
    samples: list[Sample] = []
    most = max(1, _SHOWN_SAMPLES // len(of_format))
    for row_format, files in of_format.items():
        found = read_conversations(files, row_format, skip_bad=True)
        documents = (part for row in found for part in (parts_up_to_answers(row) if config.turns == "split" else (row,)))
        shown = list(islice(documents, most))
        samples += conversation_samples(shown, opened, Reading.of(config), control=spec.allows_control_tokens)[:most]
    return tuple(samples)


def check(config: RunConfig, progress: Callable[[Progress], None]) -> CheckReport:
    """Look at all rows. Raises `MedsftError`."""
    from medsft.core.data.check.check import check_rows
    from medsft.core.workflow import check_request

    return check_rows(check_request(config), progress=progress)


def tokenize(config: RunConfig, settings_file: Path | None, progress: Callable[[Progress], None]) -> None:
    """Make the tokenized sets. Raises `MedsftError`."""
    from medsft.core.settings import load_settings
    from medsft.core.workflow import tokenize_sets

    tokenize_sets(config, load_settings(settings_file), progress=progress)


class _OtherIterationsError(MedsftError):
    """Tokenizing has given another number of iterations than the person who starts the run has seen."""

    def __init__(self, iterations: int) -> None:
        super().__init__(f"The set gives {iterations:,} iterations; the person at node 0 is asked whether that is right.")
        self.iterations = iterations


def start_run(
    config: RunConfig, settings_file: Path | None, expected: int, progress: Callable[[Progress | str], None]
) -> RunDir | int:
    """Tokenize, plan and start. Returns the run; or, where tokenizing changed it, the number of iterations to confirm.

    `progress` also gets a line for each node that is waited for. Raises `MedsftError`.
    """
    from medsft.core.settings import load_settings
    from medsft.core.workflow import existing_plan, prepare_and_start

    def as_expected(plan: RunPlan) -> None:
        if plan.num_iterations != expected and existing_plan(plan) is None:
            raise _OtherIterationsError(plan.num_iterations)

    settings = load_settings(settings_file)
    try:
        return prepare_and_start(config, settings, progress=progress, on_plan=as_expected, on_status=progress)
    except _OtherIterationsError as other:
        return other.iterations
