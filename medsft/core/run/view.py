"""What a run looks like now: a fold over its events. Live, re-attached and finished runs are read the same way."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from medsft.core.run.events import Event

_STEP_SERIES = ("loss", "lr", "grad_norm", "tokens_per_second", "memory_bytes")
_EVAL_SERIES = ("loss", "perplexity", "accuracy")
_NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was saved."""

    iteration: int
    time: float
    bytes: int
    seconds: float


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
    checkpoints: tuple[Checkpoint, ...] = ()
    warnings: tuple[tuple[float, str], ...] = ()
    """(unix time, message), the latest 200."""
    reason: str = ""
    remedy: str = ""
    exit_code: int | None = None
    export: str = ""
    """Folder of the finished model."""

    def last(self, name: str) -> float | None:
        """Return the latest value of a step series, or None."""
        values = self.series.get(name)
        return values[-1] if values else None

    def last_eval(self, name: str) -> float | None:
        """Return the latest value of a validation series, or None."""
        values = self.eval_series.get(name)
        return values[-1] if values else None


class ViewFold:
    """Folds events into a view one by one: ``fold(a + b)`` equals folding `a`, then `b`."""

    def __init__(self) -> None:
        self._scalars: dict[str, Any] = {}
        self._steps: array[int] = array("q")
        self._series: dict[str, array[float]] = {name: array("d") for name in _STEP_SERIES}
        self._counts: array[int] = array("q")
        self._supervised: array[int] = array("q")
        self._eval_steps: array[int] = array("q")
        self._eval_series: dict[str, array[float]] = {name: array("d") for name in _EVAL_SERIES}
        self._checkpoints: dict[int, Checkpoint] = {}
        self._warnings: list[tuple[float, str]] = []

    def feed(self, events: Iterable[Event]) -> None:
        """Take in events in the order of the log."""
        for event in events:
            handler = getattr(self, f"_on_{event.kind}", None)
            if handler is not None:
                handler(event, event.data)
                self._scalars["updated"] = event.time

    def view(self) -> RunView:
        """Return a snapshot that later events do not change."""
        return RunView(
            **self._scalars,
            tokens=sum(self._counts),
            supervised_tokens=sum(self._supervised),
            steps=self._steps[:],
            series={name: values[:] for name, values in self._series.items()},
            eval_steps=self._eval_steps[:],
            eval_series={name: values[:] for name, values in self._eval_series.items()},
            checkpoints=tuple(self._checkpoints.values()),
            warnings=tuple(self._warnings),
        )

    def _on_run_started(self, event: Event, data: Mapping[str, Any]) -> None:
        """A resume goes back to its checkpoint: what came after it happens again and is forgotten."""
        done = int(data.get("iteration", 0))
        while self._steps and self._steps[-1] > done:
            for values in (self._steps, self._counts, self._supervised, *self._series.values()):
                values.pop()
        while self._eval_steps and self._eval_steps[-1] > done:
            for values in (self._eval_steps, *self._eval_series.values()):
                values.pop()
        self._scalars |= {
            "outcome": "running",
            "phase": "loading",
            "iteration": done,
            "total": int(data.get("total", 0)),
            "started": event.time,
            "eta_seconds": None,
            "resumes": self._scalars.get("resumes", -1) + 1,
            "info": dict(data),
            "reason": "",
            "remedy": "",
            "exit_code": None,
        }

    def _on_phase(self, event: Event, data: Mapping[str, Any]) -> None:
        self._scalars["phase"] = str(data.get("name", ""))

    def _on_step(self, event: Event, data: Mapping[str, Any]) -> None:
        self._steps.append(int(data["iteration"]))
        for name, values in self._series.items():
            value = data.get(name)
            values.append(_NAN if value is None else float(value))
        self._counts.append(int(data.get("tokens") or 0))
        self._supervised.append(int(data.get("supervised_tokens") or 0))
        self._scalars |= {
            "iteration": int(data["iteration"]),
            "total": int(data.get("total", self._scalars.get("total", 0))),
            "eta_seconds": data.get("eta_seconds"),
            "epoch": float(data.get("epoch") or 0.0),
            "memory_bytes": int(data.get("memory_bytes") or 0),
            "phase": "training",
        }

    def _on_eval(self, event: Event, data: Mapping[str, Any]) -> None:
        self._eval_steps.append(int(data["iteration"]))
        for name, values in self._eval_series.items():
            value = data.get(name)
            values.append(_NAN if value is None else float(value))

    def _on_checkpoint(self, event: Event, data: Mapping[str, Any]) -> None:
        iteration = int(data["iteration"])
        self._checkpoints[iteration] = Checkpoint(
            iteration, event.time, int(data.get("bytes") or 0), float(data.get("seconds") or 0.0)
        )

    def _on_warning(self, event: Event, data: Mapping[str, Any]) -> None:
        self._warnings = [*self._warnings[-199:], (event.time, str(data.get("message", "")))]

    def _on_failed(self, event: Event, data: Mapping[str, Any]) -> None:
        self._scalars |= {
            "outcome": "failed",
            "eta_seconds": None,
            "reason": str(data.get("reason", "")),
            "remedy": str(data.get("remedy", "")),
            "exit_code": data.get("exit_code"),
        }

    def _on_finished(self, event: Event, data: Mapping[str, Any]) -> None:
        self._scalars |= {"outcome": "finished", "eta_seconds": 0.0, "export": str(data.get("export", ""))}

    def _on_stopped(self, event: Event, data: Mapping[str, Any]) -> None:
        self._scalars |= {"outcome": "stopped", "eta_seconds": None}


def fold(events: Iterable[Event]) -> RunView:
    """Return the view after all of `events`."""
    state = ViewFold()
    state.feed(events)
    return state.view()
