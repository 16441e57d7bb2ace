"""What a run looks like now: a fold over its events. Live, re-attached and finished runs are read the same way."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby, islice
from math import inf, isnan
from operator import attrgetter, itemgetter
from typing import Any

from medsft.core.config.eval_tasks import best_task
from medsft.core.run.events import Event, Record, event_of

_STEP_SERIES = ("loss", "lr", "grad_norm", "tokens_per_second", "memory_bytes")
_COUNTS = ("tokens", "supervised_tokens")
_EVAL_SERIES = ("loss", "perplexity", "accuracy")
_NAN = float("nan")
_LAST = 2**62
"""Beyond every iteration."""
_NOT_AN_EVENT = (KeyError, TypeError, ValueError, OverflowError)
"""What a line of the log raises that is JSON, but whose fields are not those of its kind: damage, or another version."""
_of_a_step = itemgetter("iteration", *_STEP_SERIES, *_COUNTS)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was saved."""

    iteration: int
    time: float
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class TaskSeries:
    """What a run said of a benchmark (`--eval_task`), in parallel arrays."""

    steps: array[int] = field(default_factory=lambda: array("q"))
    accuracy: array[float] = field(default_factory=lambda: array("d"))
    low: array[float] = field(default_factory=lambda: array("d"))
    """Where the 95 % interval of the accuracy begins."""
    high: array[float] = field(default_factory=lambda: array("d"))

    @property
    def columns(self) -> tuple[array[Any], ...]:
        """All arrays."""
        return self.steps, self.accuracy, self.low, self.high

    def up_to(self, iteration: int) -> TaskSeries:
        """Return a copy without what came after an iteration."""
        count = bisect_right(self.steps, iteration)
        return TaskSeries(self.steps[:count], self.accuracy[:count], self.low[:count], self.high[:count])


@dataclass(frozen=True, slots=True)
class RunView:
    """The state of a run as its events tell it. Series are parallel arrays; a value that was not finite is NaN."""

    outcome: str = "planned"
    """`planned`, `running`, `finished`, `stopped` or `failed`; whether it still lives only the run folder knows."""
    phase: str = ""
    iteration: int = 0
    total: int = 0
    started: float = 0.0
    """Unix time of the latest start."""
    updated: float = 0.0
    """Unix time of the latest event."""
    eta_seconds: float | None = None
    epoch: float = 0.0
    tokens: int = 0
    """Document tokens since the first start."""
    supervised_tokens: int = 0
    memory_bytes: int = 0
    resumes: int = 0
    info: Mapping[str, Any] = field(default_factory=dict)
    """The fields of the latest `run_started`."""
    steps: array[int] = field(default_factory=lambda: array("q"))
    series: Mapping[str, array[float]] = field(default_factory=dict)
    """`loss`, `lr`, `grad_norm`, `tokens_per_second`, `memory_bytes` for each of `steps`."""
    eval_steps: array[int] = field(default_factory=lambda: array("q"))
    eval_series: Mapping[str, array[float]] = field(default_factory=dict)
    """`loss`, `perplexity`, `accuracy` for each of `eval_steps`."""
    tasks: Mapping[str, TaskSeries] = field(default_factory=dict)
    """Of each benchmark by its name."""
    checkpoints: tuple[Checkpoint, ...] = ()
    warnings: tuple[tuple[float, str], ...] = ()
    """(unix time, message), the latest 200."""
    reason: str = ""
    remedy: str = ""
    exit_code: int | None = None
    export: str = ""
    """Folder of the finished model."""
    exported_iteration: int | None = None
    """The iteration of its checkpoint, where that is not the last one."""

    def last(self, name: str) -> float | None:
        """Return the latest value of a step series, or None."""
        values = self.series.get(name)
        return values[-1] if values else None

    def at(self, iteration: int) -> RunView:
        """Return the view as it was when `iteration` was the last one: what came later is left out of the series."""
        steps, evals = bisect_right(self.steps, iteration), bisect_right(self.eval_steps, iteration)
        return replace(
            self,
            iteration=iteration,
            steps=self.steps[:steps],
            series={name: values[:steps] for name, values in self.series.items()},
            eval_steps=self.eval_steps[:evals],
            eval_series={name: values[:evals] for name, values in self.eval_series.items()},
            tasks=_up_to(self.tasks, iteration),
        )

    def last_eval(self, name: str) -> float | None:
        """Return the latest value of a validation series, or None."""
        values = self.eval_series.get(name)
        return values[-1] if values else None

    def best_eval(self) -> tuple[int, float] | None:
        """Return (iteration, loss) of the validation with the lowest loss after the first iteration, or None."""
        pairs = zip(self.eval_steps, self.eval_series.get("loss", ()), strict=False)
        found = [(loss, iteration) for iteration, loss in pairs if iteration > 0 and not isnan(loss)]
        return (min(found)[1], min(found)[0]) if found else None

    @property
    def best_by(self) -> str | None:
        """The benchmark whose accuracy decides which checkpoint is the best, None where the loss does."""
        return best_task(str(self.info.get("keep_best", "")))

    def best_accuracy(self, task: str) -> tuple[int, float] | None:
        """Return (iteration, accuracy) of the best evaluation after the first iteration, or None: the highest accuracy, of
        equal ones that with the lowest loss on the validation set, then the first.
        """
        series = self.tasks.get(task, TaskSeries())
        losses = dict(zip(self.eval_steps, self.eval_series.get("loss", ()), strict=False))
        pairs = [(step, accuracy) for step, accuracy in zip(series.steps, series.accuracy, strict=True) if step > 0]

        def rank(pair: tuple[int, float]) -> tuple[float, float, int]:
            loss = losses.get(pair[0], _NAN)
            return -pair[1], inf if isnan(loss) else loss, pair[0]

        return min(pairs, key=rank, default=None)

    def best_iteration(self) -> int | None:
        """Return after which iteration the model was best, by what decides in this run; None where nobody has looked."""
        found = self.best_eval() if self.best_by is None else self.best_accuracy(self.best_by)
        return None if found is None else found[0]

    def base_eval(self, name: str) -> float | None:
        """Return the value of the validation before the first iteration, which is the base model's, or None."""
        return self.eval_series[name][0] if self.eval_steps and self.eval_steps[0] == 0 else None


class ViewFold:
    """Folds events into a view bit by bit: feeding `a + b` equals feeding `a`, then `b`.

    Steps are taken in runs of consecutive ones, so that the log of a long run opens at once.
    """

    def __init__(self) -> None:
        self._now: dict[str, Any] = {"resumes": -1, "total": 0, "warnings": ()}
        """The fields of the view that have changed, but for the series, which grow in place below."""
        self._steps: array[int] = array("q")
        self._series: dict[str, array[float]] = {name: array("d") for name in _STEP_SERIES}
        self._totals: dict[str, array[int]] = {name: array("q") for name in _COUNTS}
        """Running sums: a resume cuts them back like every other series."""
        self._eval_steps: array[int] = array("q")
        self._eval_series: dict[str, array[float]] = {name: array("d") for name in _EVAL_SERIES}
        self._tasks: dict[str, TaskSeries] = {}
        self._checkpoints: dict[int, Checkpoint] = {}
        self._handlers: dict[str, Callable[[Event, Mapping[str, Any]], None]] = {
            "run_started": self._on_run_started,
            "phase": self._on_phase,
            "eval": self._on_eval,
            "eval_task": self._on_eval_task,
            "checkpoint": self._on_checkpoint,
            "warning": self._on_warning,
            "failed": self._on_failed,
            "finished": self._on_finished,
            "stopped": self._on_stopped,
        }

    def feed(self, events: Iterable[Event]) -> None:
        """Take in events in the order of the log. Unknown kinds change nothing."""
        for kind, group in groupby(events, key=attrgetter("kind")):
            run = list(group)
            if kind == "step":
                self._take_steps([event.data for event in run])
            elif kind in self._handlers:
                for event in run:
                    with suppress(*_NOT_AN_EVENT):
                        self._handlers[kind](event, event.data)
            else:
                continue
            self._set(updated=run[-1].time)

    def feed_records(self, records: Iterable[Record]) -> None:
        """Take in the events that these lines of a log are; for those of steps no objects are made."""
        for kind, group in groupby(records, key=_kind_of):
            if kind == "step":
                steps = [record for record in group if "seq" in record and "time" in record]
                if steps:
                    self._take_steps(steps)
                    with suppress(*_NOT_AN_EVENT):
                        self._set(updated=float(steps[-1]["time"]))
            else:
                self.feed(event for record in group if (event := event_of(record)) is not None)

    def view(self) -> RunView:
        """Return a snapshot that later events do not change."""
        return replace(
            RunView(**self._now),
            resumes=max(0, self._now["resumes"]),
            tokens=_last(self._totals["tokens"]),
            supervised_tokens=_last(self._totals["supervised_tokens"]),
            steps=self._steps[:],
            series={name: values[:] for name, values in self._series.items()},
            eval_steps=self._eval_steps[:],
            eval_series={name: values[:] for name, values in self._eval_series.items()},
            tasks=_up_to(self._tasks, _LAST),
            checkpoints=tuple(self._checkpoints.values()),
        )

    def _set(self, **changes: Any) -> None:
        self._now.update(changes)

    def _on_run_started(self, event: Event, data: Mapping[str, Any]) -> None:
        """A resume goes back to its checkpoint: what came after it happens again and is forgotten."""
        done = int(data.get("iteration", 0))
        _cut([*self._series.values(), *self._totals.values(), self._steps], bisect_right(self._steps, done))
        _cut([*self._eval_series.values(), self._eval_steps], bisect_right(self._eval_steps, done))
        self._tasks = _up_to(self._tasks, done)
        self._set(
            outcome="running",
            phase="loading",
            iteration=done,
            total=int(data.get("total", 0)),
            started=event.time,
            eta_seconds=None,
            resumes=self._now["resumes"] + 1,
            info=dict(data),
            reason="",
            remedy="",
            exit_code=None,
        )

    def _on_phase(self, event: Event, data: Mapping[str, Any]) -> None:
        self._set(phase=str(data.get("name", "")))

    def _take_steps(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take in steps; where one of them is damaged, the others."""
        before = len(self._steps)
        try:
            self._on_steps(rows)
        except _NOT_AN_EVENT:
            _cut([*self._series.values(), *self._totals.values(), self._steps], before)
            for row in rows if len(rows) > 1 else ():
                self._take_steps([row])

    def _on_steps(self, rows: Sequence[Mapping[str, Any]]) -> None:
        columns = _columns(rows)
        self._steps.extend(next(columns))
        for values in self._series.values():
            column = next(columns)
            values.extend([_NAN if value is None else value for value in column] if None in column else column)
        for totals in self._totals.values():
            column = next(columns)
            numbers = [value or 0 for value in column] if None in column else column
            totals.extend(islice(accumulate(numbers, initial=_last(totals)), 1, None))
        last = rows[-1]
        self._set(
            iteration=int(last["iteration"]),
            total=int(last.get("total", self._now["total"])),
            eta_seconds=last.get("eta_seconds"),
            epoch=float(last.get("epoch") or 0.0),
            memory_bytes=int(last.get("memory_bytes") or 0),
            phase="training",
        )

    def _on_eval(self, event: Event, data: Mapping[str, Any]) -> None:
        found = {name: _NAN if (value := data.get(name)) is None else float(value) for name in self._eval_series}
        self._eval_steps.append(int(data["iteration"]))
        for name, values in self._eval_series.items():
            values.append(found[name])

    def _on_eval_task(self, event: Event, data: Mapping[str, Any]) -> None:
        iteration, (low, high) = int(data["iteration"]), data["interval"]
        figures = float(data["accuracy"]), float(low), float(high)
        series = self._tasks.setdefault(str(data["task"]), TaskSeries())
        series.steps.append(iteration)
        for values, figure in zip(series.columns[1:], figures, strict=True):
            values.append(figure)

    def _on_checkpoint(self, event: Event, data: Mapping[str, Any]) -> None:
        iteration = int(data["iteration"])
        self._checkpoints[iteration] = Checkpoint(
            iteration, event.time, int(data.get("bytes") or 0), float(data.get("seconds") or 0.0)
        )

    def _on_warning(self, event: Event, data: Mapping[str, Any]) -> None:
        self._set(warnings=(*self._now["warnings"][-199:], (event.time, str(data.get("message", "")))))

    def _on_failed(self, event: Event, data: Mapping[str, Any]) -> None:
        self._set(
            outcome="failed",
            eta_seconds=None,
            reason=str(data.get("reason", "")),
            remedy=str(data.get("remedy", "")),
            exit_code=data.get("exit_code"),
        )

    def _on_finished(self, event: Event, data: Mapping[str, Any]) -> None:
        exported = data.get("exported_iteration")
        self._set(
            outcome="finished",
            eta_seconds=0.0,
            export=str(data.get("export") or ""),
            exported_iteration=None if exported is None else int(exported),
        )

    def _on_stopped(self, event: Event, data: Mapping[str, Any]) -> None:
        self._set(outcome="stopped", eta_seconds=None)


def _up_to(tasks: Mapping[str, TaskSeries], iteration: int) -> dict[str, TaskSeries]:
    """Return the series of benchmarks without what came after an iteration."""
    cut = {name: series.up_to(iteration) for name, series in tasks.items()}
    return {name: series for name, series in cut.items() if series.steps}


def _kind_of(record: Record) -> Any:
    return record.get("kind")


def _columns(rows: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[Any]]:
    """Return the iterations, the values of `_STEP_SERIES`, then those of `_COUNTS`, of each row; None where a row has none."""
    try:
        return iter(list(zip(*map(_of_a_step, rows), strict=True)))
    except KeyError:  # of another version; asking each row for each value takes twice the time
        return iter([[row.get(name) for row in rows] for name in ("iteration", *_STEP_SERIES, *_COUNTS)])


def _cut(columns: Sequence[array[Any]], length: int) -> None:
    for values in columns:
        del values[length:]


def _last(totals: array[int]) -> int:
    return totals[-1] if totals else 0


def fold(events: Iterable[Event]) -> RunView:
    """Return the view after all of `events`."""
    state = ViewFold()
    state.feed(events)
    return state.view()
