"""What the monitor says about a run: pure functions from a snapshot to text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from textual.content import Content

from medsft.core.printable import one_line
from medsft.core.run.launch import load_plan
from medsft.core.run.listing import BROKEN
from medsft.core.run.rundir import LOST_AFTER_SECONDS, RunDir
from medsft.core.run.snapshot import Snapshot
from medsft.core.run.view import RunView
from medsft.core.text.adapter import adapter_label
from medsft.core.text.best import best_validation, share_text, task_results
from medsft.core.text.events import phase_word
from medsft.core.text.steps import MEASURES, measured
from medsft.core.units import age, byte_size, count, decimal, duration, short_count
from medsft.errors import MedsftError
from medsft.tui.widgets.chart import Series

STATE_SIGNS = {
    "planned": ("○", "$text-muted"),
    "running": ("▶", "$success"),
    "stopping": ("◐", "$warning"),
    "stopped": ("■", "$warning"),
    "finished": ("✔", "$success"),
    "failed": ("✖", "$error"),
    "lost": ("?", "$error"),
    BROKEN: ("✖", "$error"),
}
"""Each state is a word and a sign; the color only comes third."""
_SIGNS = "ox+*#"
"""Of the lines of benchmarks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFacts:
    """The few things of a plan that the monitor shows. All None where the plan cannot be read."""

    epochs: float | None = None
    device_memory: int | None = None
    supervised_tokens: int | None = None
    """Of the whole run."""
    adapter: str = ""
    """Kind and rank of the adapter that is trained, and its part of the parameters; empty where all weights are trained."""

    @classmethod
    def of(cls, run: RunDir) -> PlanFacts:
        """Read them from the run's plan; a monitor of a damaged plan still shows the events."""
        try:
            plan = load_plan(run)
        except MedsftError:
            return cls()
        return cls(
            epochs=plan.epochs,
            device_memory=plan.estimates.device_memory,
            supervised_tokens=round(plan.train.supervised_tokens * plan.epochs),
            adapter=adapter_label(plan),
        )


def state_label(state: str) -> Content:
    """Return sign and word of a state in its color."""
    sign, color = STATE_SIGNS[state]
    return Content.styled(f"{sign} {state.upper()}", f"bold {color}")


def headline(name: str, snapshot: Snapshot) -> Content:
    """Return state, progress and time left, then the run's name."""
    view = snapshot.view
    parts: list[Content | str] = [state_label(snapshot.state)]
    if view.total:
        parts.append(f"  {count(view.iteration)} of {count(view.total)} iterations, {view.iteration / view.total:.0%}")
    if snapshot.state == "running":
        parts.append(f" · {_progress_words(snapshot)}")
    elif view.updated:
        parts.append(f" · {age(snapshot.now - view.updated)}")
    return Content.assemble(*parts, "\n", Content.styled(name, "$text-muted"))


def _progress_words(snapshot: Snapshot) -> str:
    """Return the time left, and what is done besides training."""
    view = snapshot.view
    if view.phase == "exporting":
        return "exporting the model"
    if view.outcome != "running" or view.phase == "loading":  # a resumed run is alive before it says so
        return "starting"
    if view.iteration >= view.total:
        return "finishing"
    if view.phase == "evaluating" and not view.steps:
        return "validating the base model"
    if view.eta_seconds is None:
        return "first step under way"
    besides = "" if view.phase == "training" else f" · {phase_word(view.phase)}"
    return f"{duration(_eta(snapshot))} left{besides}"


def _eta(snapshot: Snapshot) -> float | None:
    """Return the estimate of the last step less the time since then."""
    eta = snapshot.view.eta_seconds
    return None if eta is None else max(0.0, eta - (snapshot.now - snapshot.view.updated))


def numbers(snapshot: Snapshot, plan: PlanFacts, width: int) -> Content:
    """Return the latest values in lines of at most `width` columns; a value stays with its label."""
    view = snapshot.view
    memory = byte_size(view.memory_bytes) + (f" of {byte_size(plan.device_memory)}" if plan.device_memory else "")
    supervised = short_count(view.supervised_tokens)
    if plan.supervised_tokens and view.iteration < view.total:  # of a part of an epoch it is not known before
        supervised += f" of about {short_count(plan.supervised_tokens)}"
    epoch = f"{view.epoch:.2f}" + (f" of {decimal(plan.epochs)}" if plan.epochs else "")
    validation = view.last_eval("loss")
    pairs = [
        ("loss", measured("loss", view.last("loss"))),
        ("validation", measured("loss", validation) if validation is not None else ""),
        *_tasks(view),
        ("best", _best(view)),
        *((MEASURES[name].label, measured(name, view.last(name))) for name in ("lr", "grad_norm", "tokens_per_second")),
        ("epoch", epoch),
        ("answer tokens", supervised),
        ("memory per rank", memory),
        ("adapter", plan.adapter),
    ]
    return _flow(pairs if view.steps else [pairs[1], *_tasks(view)], width)


def _best(view: RunView) -> str:
    """Return when the model was best, by what decides in this run; "" while the last one is."""
    if view.best_by is not None:
        best = view.best_accuracy(view.best_by)
        is_last = best is None or best[0] == view.tasks[view.best_by].steps[-1]
        return "" if best is None or is_last else f"{100 * best[1]:.1f} % in {view.best_by} after {count(best[0])}"
    best = view.best_eval()
    is_last = best is None or best[0] == view.eval_steps[-1]
    return "" if best is None or is_last else f"{measured('loss', best[1])} after {count(best[0])}"


def _tasks(view: RunView) -> list[tuple[str, str]]:
    """Return the latest accuracy in each benchmark, with its interval."""
    return [(name, share_text(*(column[-1] for column in series.columns[1:]))) for name, series in view.tasks.items()]


def benchmark_lines(view: RunView) -> list[Series]:
    """Return the accuracy in each benchmark, in per cent, for a chart."""
    return [
        Series(one_line(name), series.steps, [100 * share for share in series.accuracy], _SIGNS[number % len(_SIGNS)])
        for number, (name, series) in enumerate(view.tasks.items())
    ]


def _flow(pairs: Iterable[tuple[str, str]], width: int) -> Content:
    parts: list[Content | str] = []
    used = 0
    for label, value in pairs:
        if not value:
            continue
        length = len(label) + 1 + len(value)
        if parts:
            fits = used + 3 + length <= width
            parts.append("   " if fits else "\n")
            used = used + 3 if fits else 0
        parts += [Content.styled(label, "$text-muted"), " ", value]
        used += length
    return Content.assemble(*parts)


def notice(snapshot: Snapshot, resume_command: str) -> str:
    """Return what a person should know or do in this state; empty when all goes well."""
    view, state = snapshot.view, snapshot.state
    if state == BROKEN:
        return f"Broken: {snapshot.problem}."
    again = f"Resume it: press g, or {resume_command}"
    if state == "planned":
        return f"Planned, not started. Start it: press g, or {resume_command}"
    if state == "stopping":
        return "Stopping: it finishes this iteration, saves a checkpoint and ends."
    if state == "stopped":
        return f"Stopped on request, with a checkpoint. {again}"
    if state == "finished":
        model = f"Model: {view.export}" if view.export else "Write the model with e (export)."
        return "\n".join(part for part in (f"Finished. {model}", best_validation(view), *task_results(view)) if part)
    if state == "failed":
        return "\n".join(part for part in (f"Failed: {view.reason or 'no reason given'}", view.remedy, again) if part)
    if state == "lost":
        saved = f"from checkpoint {count(snapshot.saved[-1])}" if snapshot.saved else "from the start"
        silent = duration(snapshot.now - view.updated)
        return (
            f"Lost: the processes exited without reporting an error; the last event is {silent} old. "
            f"The machine may have restarted, or something killed it.\nIt resumes {saved}: press g, or {resume_command}"
        )
    seconds = snapshot.now - view.updated
    if (
        view.outcome == "running"
        and view.phase == "training"
        and view.steps
        and seconds > max(LOST_AFTER_SECONDS, 10 * _step_seconds(snapshot))
    ):
        return f"No step for {duration(seconds)}: slow, or waiting for another rank. See the log (l)."
    return ""


def _step_seconds(snapshot: Snapshot) -> float:
    """Return the time of one step by the estimate: what is left, divided by the steps that are left."""
    view = snapshot.view
    left = view.total - view.iteration
    return view.eta_seconds / left if view.eta_seconds and left > 0 else 0.0


def checkpoints(snapshot: Snapshot) -> Content:
    """Return the checkpoints, the latest first, with size and age."""
    saved = sorted((c for c in snapshot.view.checkpoints if c.iteration in snapshot.saved), key=lambda c: -c.iteration)
    if not saved:
        return Content.styled("none yet", "$text-muted")
    best = snapshot.view.best_iteration()
    named = {best: ", the best"}
    rows = [(count(c.iteration), byte_size(c.bytes), age(snapshot.now - c.time) + named.get(c.iteration, "")) for c in saved]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return Content("\n".join(f"{what:>{widths[0]}}  {size:>{widths[1]}}  {when}" for what, size, when in rows))


def warnings(snapshot: Snapshot) -> Content:
    """Return the warnings, the latest first, with their age."""
    if not snapshot.view.warnings:
        return Content.styled("none", "$text-muted")
    lines = [f"{age(snapshot.now - moment)}: {text}" for moment, text in reversed(snapshot.view.warnings)]
    return Content("\n".join(lines))
