"""A run as lines of text, for `--plain`, for pipes, and for screen readers. The screens show the same values."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from medsft.core.run.events import Event
from medsft.core.text.best import share_text
from medsft.core.text.steps import step_line
from medsft.core.units import byte_size, count, counted, duration


def event_line(event: Event) -> str | None:
    """Return one event as a line without a newline; None for a kind that says nothing to a person."""
    text = _text(event.kind, event.data)
    return None if text is None else f"{time.strftime('%H:%M:%S', time.localtime(event.time))}  {text}"


def phase_word(name: str) -> str:
    """Return what a phase is called on a screen. Events keep a name of their first version, which is not today's word."""
    return "validating" if name == "evaluating" else name


def _text(kind: str, data: Mapping[str, Any]) -> str | None:
    if kind == "run_started":
        again = f"resumed after iteration {count(data.get('iteration', 0))}" if data.get("resumed") else "started"
        host = f" on {data['host']}" if data.get("host") else ""
        total, ranks = counted(data.get("total", 0), "iteration"), counted(data.get("world_size", 1), "process", "processes")
        return f"{again}: {total}, {ranks}{host}"
    if kind == "phase":
        return f"{phase_word(str(data.get('name', '')))} ..."
    if kind == "step":
        return f"{count(data.get('iteration', 0))}/{count(data.get('total', 0))}  {step_line(data)}"
    if kind == "eval":
        parts = [
            f"{label} {value:.4f}" for label in ("loss", "perplexity", "accuracy") if (value := data.get(label)) is not None
        ]
        return f"validation {_when(data)}: {', '.join(parts)}"
    if kind == "eval_task":
        low, high = data.get("interval") or (0.0, 1.0)
        certain, asked = share_text(data.get("accuracy", 0), low, high), counted(data.get("questions", 0), "question")
        return f"{data.get('task', '')} {_when(data)}: {certain} of {asked}"
    if kind == "checkpoint":
        size, took = byte_size(data.get("bytes") or 0), duration(data.get("seconds"))
        return f"checkpoint {count(data.get('iteration', 0))} saved, {size} in {took}"
    if kind == "warning":
        return f"WARNING {data.get('message', '')}"
    if kind == "failed":
        return f"FAILED {data.get('reason', '')} {data.get('remedy', '')}".rstrip()
    if kind == "finished":
        export, exported = data.get("export"), data.get("exported_iteration")
        of = f" of iteration {count(exported)}, the best" if exported else ""
        done = f"finished after {counted(data.get('iteration', 0), 'iteration')}"
        return f"{done}, model{of} in {export}" if export else done
    if kind == "stopped":
        return f"stopped on request after iteration {count(data.get('iteration', 0))}"
    if kind == "benchmark":
        low, high = data.get("interval") or (0.0, 1.0)
        certain = f"{100 * low:.1f} to {100 * high:.1f}"
        asked = counted(data.get("questions", 0), "question")
        return f"{data.get('task', '')} by {data.get('method', '')}: {data.get('accuracy', 0):.1%} ({certain}) of {asked}"
    return None


def _when(data: Mapping[str, Any]) -> str:
    number = data.get("iteration", 0)
    return f"after {count(number)}" if number else "before the first iteration"
