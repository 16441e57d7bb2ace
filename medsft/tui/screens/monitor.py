"""The live view of one run. It only reads the run's folder and leaves requests in it, so closing it changes nothing."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Container, Horizontal, Vertical
from textual.message import Message
from textual.reactive import reactive
from textual.screen import Screen
from textual.widgets import Footer, Input, ProgressBar, Static
from textual.worker import get_current_worker

from medsft.core.printable import one_line
from medsft.core.run.launch import load_plan
from medsft.core.run.rundir import RunDir
from medsft.core.run.snapshot import POLL_SECONDS, Snapshot, SnapshotReader
from medsft.core.run.view import RunView
from medsft.errors import MedsftError
from medsft.tui.screens import actions, monitor_text
from medsft.tui.widgets import samples
from medsft.tui.widgets.chart import Series
from medsft.tui.widgets.dialogs import COMMON, Confirm, TextDialog
from medsft.tui.widgets.linechart import LineChart
from medsft.tui.widgets.loglines import LogLines
from medsft.tui.widgets.navigation import ShowRuns
from medsft.tui.widgets.sizehint import SizeHint
from medsft.tui.widgets.text import put
from medsft.tui.widgets.textfield import Line

BENCHMARKS = "benchmarks"
CHARTS = {
    "loss": "1 Loss",
    "lr": "2 Learning rate",
    "grad_norm": "3 Gradient norm",
    "tokens_per_second": "4 Tokens/s",
    BENCHMARKS: "5 Benchmarks",
}
"""Titles, each with its key; that of benchmarks is shown of runs that are asked some."""
PANELS = {"checkpoints": "c Checkpoints", "warnings": "w Warnings", "log": "l Log"}
"""Titles, each with its key."""


class MonitorScreen(Screen[None]):
    """Watches one run."""

    AUTO_FOCUS = ""
    HELP = """
Watches one run. Everything here is read from the run's folder: closing this view, or losing the connection, does not
touch the training. Come back any time with `medsft watch RUN`.

The bright line of a chart is the mean of the steps under it, the dim part how far they spread.
"""
    BINDINGS = [
        *COMMON,
        Binding("s", "stop", "Stop", tooltip="Save a checkpoint and end after this iteration (asks first)"),
        Binding("v", "save", "Save", tooltip="Save a checkpoint after this iteration and continue"),
        Binding("g", "resume", "Resume", tooltip="Resume a run that stopped, failed or was lost"),
        Binding("b", "samples", "Batch", tooltip="Show the rows of the current batch (this shows record text)"),
        Binding("y", "copy", "Copy", tooltip="Copy the command that resumes this run"),
        Binding("e", "export", "Export", tooltip="Write the model in Hugging Face format, when there is a checkpoint"),
        Binding("a", "ask", "Ask", tooltip="Ask its model, when there is a checkpoint and nothing trains"),
        Binding("1", "chart('loss')", "Loss", show=False, tooltip="Training and validation loss"),
        Binding("2", "chart('lr')", "Learning rate", show=False),
        Binding("3", "chart('grad_norm')", "Gradient norm", show=False),
        Binding("4", "chart('tokens_per_second')", "Tokens per second", show=False),
        Binding("5", f"chart({BENCHMARKS!r})", "Benchmarks", show=False, tooltip="Accuracy in each --eval_task, in per cent"),
        Binding("x", "log_scale", "Log scale", show=False, tooltip="Logarithmic y axis on and off"),
        Binding("c", "panel('checkpoints')", "Checkpoints", show=False),
        Binding("w", "panel('warnings')", "Warnings", show=False),
        Binding("l", "panel('log')", "Log", show=False, tooltip="What the launcher and the ranks print"),
        Binding("slash", "filter", "Filter log", show=False, tooltip="Show only the log lines that hold a text"),
        Binding("escape", "back", "Back", show=False, tooltip="Leave the filter, or go back to the list of runs"),
    ]
    snapshot: reactive[Snapshot | None] = reactive(None)
    current_chart: reactive[str] = reactive("loss")
    current_panel: reactive[str] = reactive("checkpoints")

    @dataclass
    class Updated(Message):
        """A newer snapshot."""

        snapshot: Snapshot

        def can_replace(self, message: Message) -> bool:
            """A snapshot carries everything, so only the latest matters."""
            return isinstance(message, MonitorScreen.Updated)

    def __init__(self, run: RunDir) -> None:
        super().__init__()
        self.run_dir = run
        self.plan = monitor_text.PlanFacts.of(run)

    def compose(self) -> ComposeResult:
        """Lay out state, numbers, charts and panels; the stylesheet decides what a size has room for."""
        yield SizeHint()
        with Vertical(id="head"):
            yield Static(id="state")
            yield ProgressBar(total=1, show_eta=False, show_percentage=False, id="progress")
            yield Static(id="facts")
            yield Static(id="notice")
        with Container(id="charts"):
            for name in CHARTS:
                yield LineChart(id=f"chart-{name}", classes="chart")
        with Horizontal(id="panels"):
            yield Static(id="checkpoints", classes="panel")
            yield Static(id="warnings", classes="panel")
            with Vertical(id="log", classes="panel"):
                yield Line(placeholder="show only lines with ...", id="filter", compact=True)
                yield LogLines(id="lines")
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """Begin to read snapshots of the run."""
        self.query_one("#filter").display = False
        self.read_snapshots()

    def on_resize(self) -> None:
        """Lay out again what depends on the width."""
        self.call_after_refresh(self._refit)

    def _refit(self) -> None:
        self._set_titles()
        if self.snapshot is not None:
            self._show_numbers(self.snapshot)

    @work(thread=True, exclusive=True, group="snapshots")
    def read_snapshots(self) -> None:
        """Look at the run twice a second until the screen goes away."""
        worker = get_current_worker()
        reader = SnapshotReader(self.run_dir, self.app.clock)  # type: ignore[attr-defined]
        while not worker.is_cancelled:
            self.post_message(self.Updated(reader.look()))
            for _ in range(round(POLL_SECONDS / 0.1)):
                if worker.is_cancelled:
                    return
                time.sleep(0.1)

    @on(Updated)
    def show(self, message: Updated) -> None:
        """Take over a newer snapshot."""
        self.snapshot = message.snapshot

    def watch_snapshot(self, old: Snapshot | None, new: Snapshot | None) -> None:
        """Show a snapshot: the numbers each time, the charts only when there are new events."""
        if new is None:
            return
        put(self.query_one("#state", Static), monitor_text.headline(one_line(self.run_dir.path.name), new))
        self._show_numbers(new)
        notice = self.query_one("#notice", Static)
        text = monitor_text.notice(new, self.resume_command)
        put(notice, text)
        notice.display = bool(text)
        notice.set_class(new.state in ("failed", "lost"), "-bad")
        notice.set_class(new.state == "finished", "-good")
        self.query_one("#progress", ProgressBar).update(total=new.view.total or 1, progress=new.view.iteration)
        put(self.query_one("#checkpoints", Static), monitor_text.checkpoints(new))
        put(self.query_one("#warnings", Static), monitor_text.warnings(new))
        self.query_one(LogLines).source = new.log
        if old is None or old.view is not new.view:
            self._show_charts(new)
            self._set_titles()
        if old is None or old.state != new.state:
            self.refresh_bindings()

    def _show_numbers(self, snapshot: Snapshot) -> None:
        put(self.query_one("#facts", Static), monitor_text.numbers(snapshot, self.plan, self.size.width - 2))

    def _show_charts(self, snapshot: Snapshot) -> None:
        view = snapshot.view
        self.set_class(bool(view.tasks), "-asked")
        for name in CHARTS:
            lines = [Series("training", view.steps, view.series.get(name, ()))]
            if name == "loss" and view.eval_steps:
                lines.append(Series("validation", view.eval_steps, view.eval_series["loss"], "o"))
            if name == BENCHMARKS:
                lines = monitor_text.benchmark_lines(view)
            self.query_one(f"#chart-{name}", LineChart).series = tuple(lines)

    @property
    def charts(self) -> Mapping[str, str]:
        """Titles of the charts that this run has."""
        asked = self.snapshot is not None and bool(self.snapshot.view.tasks)
        return {name: title for name, title in CHARTS.items() if asked or name != BENCHMARKS}

    def watch_current_chart(self, name: str) -> None:
        """Show one chart where there is no room for four."""
        for chart in self.query(LineChart):
            chart.set_class(chart.id == f"chart-{name}", "-current")

    def watch_current_panel(self, name: str) -> None:
        """Show one panel where there is no room for three."""
        for panel in self.query(".panel"):
            panel.set_class(panel.id == name, "-current")
        self._set_titles()

    def _set_titles(self) -> None:
        """Name all charts, and all panels, on the border where only one is to be seen: a small screen tells what else is."""
        count = len(self.snapshot.view.warnings) if self.snapshot else 0
        warnings = f"{PANELS['warnings']} {count}" if count else PANELS["warnings"]
        alone = not (self.has_class("-wide") and self.has_class("-tall"))
        for chart in self.query(LineChart):
            chart.border_title = _title(self.charts, (chart.id or "").removeprefix("chart-"), alone)
        for panel in self.query(".panel"):
            panel.border_title = _title({**PANELS, "warnings": warnings}, panel.id or "", alone)
            panel.set_class(bool(count) and panel.id == "warnings", "-some")

    @property
    def resume_command(self) -> str:
        """The command that resumes this run."""
        return shlex.join(["medsft", "resume", str(self.run_dir.path)])

    @property
    def state(self) -> str:
        """The state as last seen."""
        return self.snapshot.state if self.snapshot else "planned"

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Gray out what the state does not allow."""
        if action in ("stop", "save"):
            return True if self.state == "running" else None
        if action == "resume":
            return True if self.state in ("planned", "stopped", "failed", "lost") else None
        if action in ("export", "ask"):
            return True if self.snapshot and self.snapshot.saved and self.state not in ("running", "stopping") else None
        return True

    @work
    async def action_stop(self) -> None:
        """Ask, then request a stop."""
        detail = "It finishes the current iteration, saves a checkpoint and ends. It can be resumed from there."
        if await self.app.push_screen_wait(Confirm("Stop this run?", detail, yes="Stop it", no="Let it run")):
            actions.ask(self, self.run_dir, "stop")

    def action_save(self) -> None:
        """Request a checkpoint."""
        if actions.ask(self, self.run_dir, "save"):
            self.notify("A checkpoint will be saved after this iteration.")

    @work(thread=True, exclusive=True, group="act")
    def action_resume(self) -> None:
        """Resume the run."""
        actions.tell(self, lambda: actions.resume_run(self.run_dir, partial(actions.notify_from_thread, self)))

    @work(thread=True, exclusive=True, group="act")
    def action_export(self) -> None:
        """Write the model of the latest checkpoint."""
        actions.tell(self, lambda: actions.export(self.run_dir))

    def action_ask(self) -> None:
        """Talk to the model."""
        from medsft.tui.screens.ask import AskScreen

        self.app.push_screen(AskScreen(self.run_dir))

    @work(thread=True, exclusive=True, group="act")
    def action_samples(self) -> None:
        """Decode the documents of the current batch and show them."""
        view = self.snapshot.view if self.snapshot else RunView()
        iteration = view.iteration + 1 if view.iteration < view.total else view.iteration
        try:
            found = samples.current_batch(self.run_dir, iteration)
            config = load_plan(self.run_dir).config
        except (MedsftError, OSError) as error:
            self.app.call_from_thread(self.notify, str(error), title="No samples", severity="error", markup=False)
            return
        text = samples.show_samples(found, config)
        title = f"Batch of iteration {iteration:,}: its first documents"
        self.app.call_from_thread(self.app.push_screen, TextDialog(title, text))

    def action_copy(self) -> None:
        """Copy the command that resumes the run, and show it for terminals that do not let programs copy."""
        self.app.copy_to_clipboard(self.resume_command)
        self.notify(self.resume_command, title="Copied", markup=False)

    def action_chart(self, name: str) -> None:
        """Bring a chart to the front."""
        if name in self.charts:
            self.current_chart = name

    def action_log_scale(self) -> None:
        """Switch the y axis of the loss, the learning rate and the norm."""
        for chart in self.query(LineChart):
            chart.log_scale = not chart.log_scale

    def action_panel(self, name: str) -> None:
        """Bring a panel to the front; on a low screen it takes the place of the chart until its key comes again."""
        self.set_class(not (self.has_class("-open") and name == self.current_panel), "-open")
        self.current_panel = name

    def action_filter(self) -> None:
        """Type what the log lines must hold."""
        self.current_panel = "log"
        self.add_class("-open")
        field = self.query_one("#filter", Input)
        field.display = True
        field.focus()

    @on(Input.Changed, "#filter")
    def filter_log(self, event: Input.Changed) -> None:
        """Apply the filter while it is typed."""
        self.query_one(LogLines).needle = event.value

    @on(Input.Submitted, "#filter")
    def keep_filter(self) -> None:
        """Keep the filter and give the keys back to the screen."""
        self.set_focus(None)

    def action_back(self) -> None:
        """Drop the filter if it is being typed, else go back to the screen before."""
        field = self.query_one("#filter", Input)
        if field.display:
            field.value = ""
            field.display = False
            self.set_focus(None)
        elif len(self.app.screen_stack) > 2:
            self.app.pop_screen()
        else:
            self.post_message(ShowRuns(self.run_dir.path.parent))


def _title(titles: Mapping[str, str], current: str, alone: bool) -> str:
    """Return the title of one of several widgets in the same place; alone, it names the hidden ones beside it."""
    shown = [f"[b u]{title}[/]" if name == current else f"[dim]{title}[/]" for name, title in titles.items()]
    return "  ".join(shown) if alone else titles.get(current, "")
