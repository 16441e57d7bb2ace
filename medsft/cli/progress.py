"""Show a run from its events: as a progress bar, as lines, or as JSON. The run itself is another process."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import typer

from medsft.cli import console
from medsft.core.disk import probe
from medsft.core.printable import one_line, printable
from medsft.core.run.events import TERMINAL, Event, EventReader
from medsft.core.run.rundir import RunDir
from medsft.core.run.view import RunView, ViewFold
from medsft.core.text.best import best_validation, task_results
from medsft.core.units import count
from medsft.core.workflow import follow
from medsft.errors import ExitCode, MedsftError

if TYPE_CHECKING:
    from rich.progress import Progress

INTERRUPTED = 130
"""What shells expect of a command that was left with Ctrl-C."""


def show_events(run: RunDir, show: Callable[[Event], None], *, after: int = -1, node: int = 0) -> None:
    """Show the events of a run that follow event `after`, until no process works on it (on this node, if it is not 0)."""
    for event in follow(run, node=node):
        if event.seq > after:
            show(event)


def print_event_line(event: Event) -> None:
    """Print an event for a person, on standard output."""
    from medsft.core.text.events import event_line

    line = event_line(event)
    if line is not None:
        console.say(line)


def print_event_json(event: Event) -> None:
    """Print an event as the log has it."""
    console.print_json_text(event.to_line())


def run_in_foreground(run: RunDir, *, after: int, plain: bool, json: bool = False, node: int = 0) -> None:
    """Show a run that was just started on this node, from event `after` on, and end with its exit code.

    The first Ctrl-C or SIGTERM asks the run to stop and waits for it; the second leaves it running. A hang-up ends only this
    process.
    """
    with _stop_on_interrupt(run):
        if json:
            show_events(run, print_event_json, after=after, node=node)
        elif console.wants_lines(plain):
            show_events(run, print_event_line, after=after, node=node)
        else:
            with _progress_bar() as bar:
                show_events(run, _Display(bar).show, after=after, node=node)
    if node:
        _end_with_node(run, node)
    else:
        end_with_outcome(run, after=after)


def _end_with_node(run: RunDir, node: int) -> None:
    """As `end_with_outcome`, from what this node's supervisor left: node 0 may have died before it could log anything."""
    end = run.read_end(node)
    if end is None:
        console.note(f"medsft: the run's processes on this node exited without reporting an error.\n    Logs: {run.logs}")
        raise typer.Exit(ExitCode.LAUNCH)
    if end.exit_code == ExitCode.DONE:
        console.note(f"Ended on node {node}: {run.path}")
        return
    console.note(f"medsft: {end.reason}\n    {end.remedy or 'Start all nodes again to resume.'}\n    Logs: {run.logs}")
    raise typer.Exit(end.exit_code)


def end_with_outcome(run: RunDir, *, after: int = -1) -> None:
    """Say how a run ended, on standard error, and raise `typer.Exit` unless it finished or stopped as asked.

    An end before event `after` is that of an earlier start, and says nothing of this one.
    """
    if not run.exists():
        console.note(f"medsft: {run.path} was moved or removed while it trained: training has ended.")
        raise typer.Exit(ExitCode.TRAINING)
    view = run.view()
    state = run.state(view)
    if after >= 0 and not any(event.kind in TERMINAL and event.seq > after for event in EventReader(run.events_path).read()):
        state = "lost"
    if state == "finished":
        of = f" (iteration {count(view.exported_iteration)})" if view.exported_iteration else ""
        model = f"Model: {view.export}{of}\nAsk it: medsft ask {run.path}" if view.export else ""
        lines = (f"Finished: {run.path}", best_validation(view), *task_results(view), model)
        console.note("\n".join(filter(None, lines)))
    elif state == "stopped":
        console.note(f"Stopped after iteration {view.iteration}. Resume it: medsft resume {run.path}")
    elif state == "failed":
        remedy = f"\n    {view.remedy}" if view.remedy else ""
        console.note(f"medsft: {view.reason or 'the run failed'}{remedy}\n    Logs: {run.logs}")
        raise typer.Exit(view.exit_code or ExitCode.TRAINING)
    elif (found := probe(run.path)) is not None:  # the last words of a run need room, too
        console.note(f"medsft: {found.message}\n    Make room, and resume from the last checkpoint: medsft resume {run.path}")
        raise typer.Exit(ExitCode.TRAINING)
    else:
        console.note(f"medsft: the run's processes exited without reporting an error.\n    Logs: {run.logs}")
        raise typer.Exit(ExitCode.TRAINING)


@contextmanager
def _stop_on_interrupt(run: RunDir) -> Iterator[None]:
    asked = False

    def interrupted(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked  # not what the run knows: another node may have asked it to stop, as when Slurm signals all of them
        if asked:
            console.note(f"\nThe run continues. Watch it: medsft watch {run.path}")
            raise typer.Exit(INTERRUPTED)
        asked = True
        try:
            run.request("stop")
        except (MedsftError, OSError) as error:
            console.note(
                f"\nThe run could not be asked to stop, and continues. {error}\n    Press Ctrl-C again to leave it alone."
            )
            return
        console.note("\nStopping after this iteration, with a checkpoint. Press Ctrl-C again to leave the run alone.")

    before = {number: signal.signal(number, interrupted) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _progress_bar() -> Progress:
    """Return a bar on standard error. The time left is the run's own estimate: a bar's would be wrong after a resume."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}"),
        console=console.note_console(),
        expand=True,
    )


class _Display:
    """Keeps a progress bar at the state of a run, with what is worth keeping printed above it."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._fold = ViewFold()
        self._task = bar.add_task("starting", total=None, facts="")

    def show(self, event: Event) -> None:
        """Take in one event."""
        from rich.text import Text

        from medsft.core.text.events import event_line, phase_word

        self._fold.feed([event])
        view = self._fold.view()
        doing = one_line(phase_word(view.phase))
        self._bar.update(self._task, description=doing, completed=view.iteration, total=view.total or None, facts=_facts(view))
        line = event_line(event)
        if event.kind not in ("step", "phase") and line is not None:
            self._bar.console.print(Text(printable(line)))


def _facts(view: RunView) -> str:
    from medsft.core.text.steps import step_line

    values = {name: view.last(name) for name in ("loss", "tokens_per_second")}
    known = {name: value for name, value in values.items() if value is not None}
    return step_line(known | {"eta_seconds": view.eta_seconds})
