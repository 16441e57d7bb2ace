"""The runs under a folder: what each is doing, and what can be done with it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.message import Message
from textual.screen import Screen
from textual.widgets import DataTable, Footer, Static
from textual.worker import get_current_worker

from medsft.core.printable import one_line
from medsft.core.run.listing import BROKEN, list_runs
from medsft.core.run.rundir import RunDir
from medsft.core.run.snapshot import Snapshot, SnapshotReader
from medsft.core.run.view import RunView
from medsft.core.units import age, byte_size, count, counted
from medsft.errors import MedsftError
from medsft.tui.screens import actions
from medsft.tui.screens.compare import CompareScreen
from medsft.tui.screens.monitor_text import STATE_SIGNS
from medsft.tui.widgets.dialogs import COMMON, Confirm
from medsft.tui.widgets.navigation import ShowMonitor
from medsft.tui.widgets.sizehint import SizeHint
from medsft.tui.widgets.text import put

SCAN_SECONDS = 2.0
_SIZE_EVERY = 15
"""Scans between two measurements of sizes on disk: that walks through every file."""
COLUMNS = {"mark": 1, "state": 10, "name": 0, "done": 4, "loss": 7, "age": 10, "size": 8}
"""Width of each column: fixed, because a table that measures its cells shows the first row cut. 0: what is left."""
_LEAST_NAME = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """One run of the table."""

    run: RunDir
    snapshot: Snapshot
    updated: float
    bytes: int

    @property
    def view(self) -> RunView:
        """What its events say."""
        return self.snapshot.view

    @property
    def state(self) -> str:
        """One of `rundir.STATES`."""
        return self.snapshot.state


@dataclass(slots=True)
class Scanner:
    """Looks at all runs of a folder again and again, reading only what is new in each."""

    folder: Path
    clock: Callable[[], float]
    _readers: dict[Path, SnapshotReader] = field(default_factory=dict)
    _sizes: dict[Path, int] = field(default_factory=dict)
    _scans: int = 0

    def look(self) -> tuple[RunRow, ...]:
        """Return the runs, the latest first."""
        measure = self._scans % _SIZE_EVERY == 0
        self._scans += 1
        rows = []
        for run in list_runs(self.folder):
            reader = self._readers.setdefault(run.path, SnapshotReader(run, self.clock))
            snapshot = reader.look()
            if measure or run.path not in self._sizes:
                self._sizes[run.path] = run.size_bytes()
            rows.append(RunRow(run=run, snapshot=snapshot, updated=snapshot.updated, bytes=self._sizes[run.path]))
        return tuple(sorted(rows, key=lambda row: (-row.updated, row.run.path.name)))


class RunsScreen(Screen[None]):
    """Lists the runs of a folder."""

    HELP = """
The runs of one folder, the latest first. Mark two or more with m and press c to see their losses in one chart.
Training continues whether or not this list is open.
"""
    BINDINGS = [
        *COMMON,
        Binding("o", "open", "Open", tooltip="Watch this run (also enter)"),
        Binding("m,space", "mark", "Mark", tooltip="Mark this run for a comparison"),
        Binding("c", "compare", "Compare", tooltip="Loss of the marked runs in one chart"),
        Binding("s", "stop", "Stop", tooltip="Save a checkpoint and end after this iteration (asks first)"),
        Binding("g", "resume", "Resume", tooltip="Resume a run that stopped, failed or was lost"),
        Binding("e", "export", "Export", tooltip="Write the model in Hugging Face format"),
        Binding("d", "delete", "Delete", tooltip="Remove the run with its checkpoints (asks first)"),
        Binding("escape", "back", "Back", show=False),
    ]

    @dataclass
    class Scanned(Message):
        """The runs as they are now."""

        rows: tuple[RunRow, ...]

        def can_replace(self, message: Message) -> bool:
            """Only the latest matters."""
            return isinstance(message, RunsScreen.Scanned)

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.rows: dict[str, RunRow] = {}
        self.marked: set[str] = set()

    def compose(self) -> ComposeResult:
        """Lay out the table."""
        yield SizeHint()
        yield Static("Looking ...", id="about")
        yield DataTable(id="runs", cursor_type="row", zebra_stripes=True)
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """Start to look, and give states the colors of whichever theme is on."""
        self.app.theme_changed_signal.subscribe(self, lambda _: self._fill(self.rows))
        self.scan()

    def on_resize(self) -> None:
        """Give the names what the other columns leave."""
        table = self.query_one(DataTable)
        rows, self.rows = self.rows, {}
        table.clear(columns=True)
        for key, width in COLUMNS.items():
            table.add_column("" if key == "mark" else key.capitalize(), key=key, width=width or self._name_width())
        self._fill(rows)

    def _name_width(self) -> int:
        padding = 2 * len(COLUMNS)
        return max(_LEAST_NAME, self.size.width - sum(COLUMNS.values()) - padding)

    @work(thread=True, exclusive=True, group="scan")
    def scan(self) -> None:
        """Look at the folder every two seconds until the screen goes away."""
        worker = get_current_worker()
        scanner = Scanner(self.folder, self.app.clock)  # type: ignore[attr-defined]
        while not worker.is_cancelled:
            self.post_message(self.Scanned(scanner.look()))
            for _ in range(round(SCAN_SECONDS / 0.1)):
                if worker.is_cancelled:
                    return
                time.sleep(0.1)

    @on(Scanned)
    def show(self, message: Scanned) -> None:
        """Show the runs as they are now."""
        self._fill({row.run.path.name: row for row in message.rows})

    def _fill(self, fresh: dict[str, RunRow]) -> None:
        """Update the table in place, so that the cursor stays where it is."""
        table = self.query_one(DataTable)
        for name in self.rows.keys() - fresh.keys():
            table.remove_row(name)
            self.marked.discard(name)
        for name, row in fresh.items():
            cells = self._cells(name, row)
            if name not in self.rows:
                table.add_row(*cells.values(), key=name)
            else:
                for key, value in cells.items():
                    table.update_cell(name, key, value)
        self.rows = fresh
        self.other_row()

    def _cells(self, name: str, row: RunRow) -> dict[str, Text]:
        view = row.view
        loss = view.last("loss")
        sign, color = STATE_SIGNS[row.state]
        cells = {
            "mark": "●" if name in self.marked else " ",
            "state": f"{sign} {row.state}",
            "name": _end_of(name, self._name_width()),
            "done": f"{view.iteration / view.total:.0%}" if view.total else "-",
            "loss": "-" if loss is None else f"{loss:.4f}",
            "age": age(self.app.clock() - row.updated),  # type: ignore[attr-defined]
            "size": byte_size(row.bytes),
        }
        style = self.app.theme_variables.get(color.removeprefix("$"), "")
        return {key: Text(one_line(text), style if key == "state" else "") for key, text in cells.items()}

    @property
    def chosen(self) -> RunRow | None:
        """The run under the cursor."""
        table = self.query_one_optional("#runs", DataTable)
        if table is None or not table.row_count or not table.is_valid_coordinate(table.cursor_coordinate):
            return None
        return self.rows.get(table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value or "")

    @on(DataTable.RowHighlighted)
    def other_row(self) -> None:
        """Name the chosen run in full, with its progress; it allows other things than the one before."""
        row = self.chosen
        about = _about(row) if row else f"There are no runs in {self.folder} yet."
        put(self.query_one("#about", Static), about)
        self.refresh_bindings()

    @on(DataTable.RowSelected)
    def open_row(self) -> None:
        """Open the run: `enter` belongs to the table while it has the focus."""
        self.action_open()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Gray out what the chosen run does not allow."""
        if action == "compare":
            return True if len(self.marked) > 1 else None
        if action not in ("open", "mark", "stop", "resume", "export", "delete"):
            return True
        row = self.chosen
        if row is None:
            return None
        allowed = {
            "stop": row.state == "running",
            "resume": row.state in ("planned", "stopped", "failed", "lost"),
            "export": row.state not in ("running", "stopping") and bool(row.snapshot.saved),
            "delete": row.state not in ("running", "stopping"),
        }
        return True if allowed.get(action, True) else None

    def action_open(self) -> None:
        """Watch the chosen run."""
        if (row := self.chosen) is not None:
            self.post_message(ShowMonitor(row.run))

    def action_mark(self) -> None:
        """Mark or unmark the chosen run."""
        if (row := self.chosen) is not None:
            name = row.run.path.name
            self.marked ^= {name}
            self.query_one(DataTable).update_cell(name, "mark", Text("●" if name in self.marked else " "))
            self.refresh_bindings()

    def action_compare(self) -> None:
        """Show the losses of the marked runs."""
        self.app.push_screen(CompareScreen({name: self.rows[name].view for name in self.rows if name in self.marked}))

    @work
    async def action_stop(self) -> None:
        """Ask, then request a stop."""
        row = self.chosen
        if row is None:
            return
        detail = f"{row.run.path.name}\nIt saves a checkpoint first."
        if await self.app.push_screen_wait(Confirm("Stop this run?", detail, yes="Stop it", no="Let it run")):
            actions.ask(self, row.run, "stop")

    def action_resume(self) -> None:
        """Resume the chosen run."""
        if (row := self.chosen) is not None:
            self._act(partial(actions.resume_run, row.run, partial(actions.notify_from_thread, self)))

    def action_export(self) -> None:
        """Write the model of the latest checkpoint of the chosen run."""
        if (row := self.chosen) is not None:
            self._act(partial(actions.export, row.run))

    @work(thread=True, exclusive=True, group="act")
    def _act(self, action: Callable[[], str]) -> None:
        actions.tell(self, action)

    @work
    async def action_delete(self) -> None:
        """Ask, naming what goes, then remove the run."""
        row = self.chosen
        if row is None:
            return
        detail = (
            f"{row.run.path}\n{byte_size(row.bytes)}, {counted(len(row.snapshot.saved), 'checkpoint')}. This cannot be undone."
        )
        if await self.app.push_screen_wait(Confirm("Delete this run?", detail, yes="Delete", no="Keep it", danger=True)):
            try:
                row.run.delete()
            except (MedsftError, OSError) as error:
                self.notify(str(error), title="Not deleted", severity="error", markup=False)

    def action_back(self) -> None:
        """Go back to the screen before, if there is one."""
        if len(self.app.screen_stack) > 2:
            self.app.pop_screen()


def _about(row: RunRow) -> str:
    view = row.view
    if row.state == BROKEN:
        return f"{one_line(row.run.path.name)} is broken: {one_line(row.snapshot.problem)}"
    done = f"  {count(view.iteration)} of {count(view.total)} iterations" if view.total else ""
    return f"{one_line(row.run.path.name)}{done}"


def _end_of(name: str, width: int) -> str:
    """Shorten a name at its beginning: runs differ at the end."""
    return name if len(name) <= width else "…" + name[1 - width :]
