"""Models on tasks: who is asked what, and what comes of it. What `medsft eval` and scripts call.

models, tasks --asking--> requests --answer--> replies --measure--> results --compare--> pairs
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from medsft.core.data.dataset.manifest import hash_inputs
from medsft.core.data.dataset.write import ProgressCallback
from medsft.core.evaluation.asking import Ask, Asking, asking
from medsft.core.evaluation.benchmark import Task
from medsft.core.evaluation.card import CARD, update_card
from medsft.core.evaluation.measure import NO_OVERLAP, Overlap, Pair, Result, compare, measure
from medsft.core.evaluation.model import ModelSource, are_one_model, find_base_of, find_model, plan_of
from medsft.core.evaluation.overlap import overlap_with_training
from medsft.core.evaluation.prompts import Examples
from medsft.core.evaluation.requests import Answer, Request
from medsft.core.evaluation.results import FOLDER, read_records, record, write_event, write_record
from medsft.core.models.run_folder import is_run
from medsft.core.planning.plan import RunPlan
from medsft.core.run.integrity import read_export
from medsft.core.run.rundir import RunDir
from medsft.core.units import counted
from medsft.errors import MedsftError

_SETTLED_SECONDS = 2.0
"""Answers that a killed call has left come at once: what comes later says how long the rest takes."""

AnswerFunction = Callable[[ModelSource, Sequence[Request], Path], Iterator[Answer]]
"""Asks a model; the file keeps its answers, so that a second call after a kill goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A model that is evaluated, and where its results go."""

    name: str
    source: ModelSource
    home: Path
    """The folder that gets `eval/`"""
    run: RunDir | None = None
    """The run whose log gets events"""
    plan: RunPlan | None = None
    """How it was trained, where that is known"""
    is_base: bool = False
    """The model that `plan` began with"""


@dataclass(frozen=True, slots=True)
class AskProgress:
    """How far a model has come with its questions."""

    model: str
    done: int
    total: int
    seconds_left: float | None


@dataclass(slots=True)
class Evaluation:
    """What came of a call."""

    results: list[Result] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a person should know, each in a sentence"""


def find_candidates(paths: Sequence[Path], *, iteration: int | None = None, with_base: bool = False) -> list[Candidate]:
    """Return the models at these paths; with `with_base` the base model of each before it, unless it has been asked by then.

    Raises MismatchError, DataError, and ConfigError for a model whose base nobody knows.
    """
    found: list[Candidate] = []
    for path in paths:
        run = RunDir(path) if is_run(path) else None
        plan = None
        with suppress(MedsftError):  # a model of somebody else
            plan = plan_of(path)
        home = path if path.is_dir() else path.parent
        if with_base:
            base = Candidate(name="base", source=find_base_of(path), home=home, plan=plan, is_base=True)
            if not any(are_one_model(base.source, other.source) for other in found if other.is_base):
                found.append(base)
        source = find_model(path, iteration=iteration)
        found.append(Candidate(name=path.name or path.resolve().name, source=source, home=home, run=run, plan=plan))
    return _named(found)


def _named(found: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates with a name of its own for each."""
    names = [candidate.name for candidate in found]
    taken: set[str] = set()
    named = []
    for candidate in found:
        name = candidate.name
        if names.count(name) > 1:
            name = f"base of {candidate.home.name}" if candidate.is_base else str(candidate.source.adapter or candidate.home)
        number, unique = 1, name
        while unique in taken:
            number += 1
            unique = f"{name} ({number})"
        taken.add(unique)
        named.append(replace(candidate, name=unique))
    return named


def evaluate(
    candidates: Sequence[Candidate],
    tasks: Sequence[Task],
    ask: Ask,
    answer: AnswerFunction,
    *,
    precision: str,
    progress: Callable[[AskProgress], None] = lambda _: None,
    looking: ProgressCallback | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Ask each model the questions of all tasks, write what it chose, and compare the models.

    `note` is told at once what is decided. Raises ConfigError for examples that a task does not have, DataError for questions
    that a template cannot write, and what `answer` raises.
    """
    evaluation = Evaluation()

    def tell(sentence: str) -> None:
        if sentence and sentence not in evaluation.notes:
            evaluation.notes.append(sentence)
            note(sentence)

    for task in tasks:
        for sentence in (task.source, *task.notes, Examples(task, ask.shots, ask.seed).sentence()):
            tell(f"{task.title}: {sentence}" if sentence else "")
        if ask.shifts and not (task.kind == "choice" and "likelihood" in ask.methods and "label" in ask.forms):
            tell(f"{task.title}: --shifts all changes nothing: it is for the likelihood of the labels of options.")
    data = {task.name: hash_inputs(task.files) for task in tasks}  # now: a file may be another when the answers are there
    overlaps: dict[tuple[str, str], Overlap] = {}
    answered: list[tuple[Candidate, str, list[Asking], Path, Path]] = []
    for candidate in candidates:  # all answers first: a call that is killed then goes on with all that it has
        for sentence in candidate.source.notes:
            tell(f"{candidate.name}: {sentence}" if not sentence.startswith(candidate.name) else sentence)
        asked = _requests(candidate, tasks, ask)
        for one in asked:
            if one.cut:
                tell(
                    f"{candidate.name}, {one.task.title}: {counted(one.cut, 'request')} longer than the model reads: "
                    "the beginning was cut off."
                )
        folder = _results_folder(candidate.home)
        fingerprint = candidate.source.identity()  # now: a run that trains removes its older checkpoints
        keep = folder / f".answers-{_hash(candidate, fingerprint, asked)}.jsonl"
        _answer(candidate, asked, answer, keep, progress)
        answered.append((candidate, fingerprint, asked, folder, keep))
    for candidate, fingerprint, asked, folder, _ in answered:
        for one in asked:
            overlap = _overlap(candidate, one.task, overlaps, looking)
            results = [measure(candidate.name, one, method, overlap) for method in one.methods]
            evaluation.results += results
            content = record(
                one,
                results,
                candidate.source,
                data=data[one.task.name],
                fingerprint=fingerprint,
                model=candidate.name,
                precision=precision,
            )
            file = write_record(folder, content, suffix="-base" if candidate.is_base else "")
            evaluation.files.append(file)
            run = None if candidate.is_base else candidate.run
            if run is not None and not write_event(run, results, file, _iteration(candidate.source)):
                tell(f"{candidate.name} is running, so its log has no event of this.")
        if not candidate.is_base:
            _write_card(candidate, fingerprint, tell)
    for *_, keep in answered:
        keep.unlink(missing_ok=True)
    evaluation.pairs = compare(evaluation.results)
    return evaluation


def _requests(candidate: Candidate, tasks: Sequence[Task], ask: Ask) -> list[Asking]:
    source = candidate.source
    opened = source.open_tokenizer()
    return [asking(task, ask, opened, source.ends, source.context, before_text=source.before_text) for task in tasks]


def _answer(
    candidate: Candidate,
    asked: Sequence[Asking],
    answer: AnswerFunction,
    keep: Path,
    progress: Callable[[AskProgress], None],
) -> None:
    requests = [request for one in asked for request in one.requests]
    owner = {request.id: one for one in asked for request in one.requests}
    started, settled = 0.0, 0
    last, loaded = 0.0, False
    for done, found in enumerate(answer(candidate.source, requests, keep), 1):
        owner[found.id].take(found)
        now = time.monotonic()
        if not started or (not loaded and now - last > _SETTLED_SECONDS):  # the model was loaded behind answers of before
            loaded = bool(started)
            started, settled = now, done
        last, spent = now, now - started
        if spent < _SETTLED_SECONDS:
            settled = done
        new = done - settled
        left = (spent - _SETTLED_SECONDS) / new * (len(requests) - done) if new > 0 else None
        progress(AskProgress(candidate.name, done, len(requests), left))


def _hash(candidate: Candidate, fingerprint: str, asked: Sequence[Asking]) -> str:
    parts = [fingerprint, str(candidate.is_base), *(f"{one.task.name} {one.prompt_sha256()}" for one in asked)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _results_folder(home: Path) -> Path:
    """Return the folder of results: beside the model, or where that cannot be written, in the working folder."""
    folder = home / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError:
        folder = Path(FOLDER)
        folder.mkdir(exist_ok=True)
    return folder


def _overlap(
    candidate: Candidate, task: Task, known: dict[tuple[str, str], Overlap], looking: ProgressCallback | None
) -> Overlap:
    """Return the overlap of a task with the training set of a run; of its base the same, for the questions are the same."""
    if candidate.plan is None:
        return NO_OVERLAP
    key = candidate.plan.train.fingerprint, task.name
    if key not in known:
        known[key] = overlap_with_training(task, candidate.plan, progress=looking)
    return known[key]


def _iteration(source: ModelSource) -> int | None:
    """Return after which iteration of its run a model was saved, None where it does not say."""
    if source.iteration is not None:
        return source.iteration
    with suppress(OSError, ValueError, KeyError, TypeError):
        return int(read_export(source.weights)["checkpoint"]["iteration"])
    return None


def _write_card(candidate: Candidate, fingerprint: str, tell: Callable[[str], None]) -> None:
    """Write all results of a model that medsft has exported into its card."""
    model = candidate.source.adapter or candidate.source.weights
    if not model.is_dir():
        return
    places = [candidate.home, model, *([Path(candidate.plan.run_dir)] if candidate.plan else [])]
    folders = dict.fromkeys((place / FOLDER).resolve() for place in places)
    records = [
        one
        for folder in folders
        for one in read_records(folder)
        if isinstance(one.get("model"), dict) and one["model"].get("fingerprint") == fingerprint
    ]
    records.sort(key=lambda one: str(one.get("time")))
    try:
        if update_card(model, records):
            tell(f"The model card has the results: {model / CARD}")
    except OSError as error:
        tell(f"The model card in {model} could not be written: {error.strerror or error}.")
