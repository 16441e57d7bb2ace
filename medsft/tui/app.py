"""The terminal application: one app, three first screens. It computes nothing that the core does not."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from textual import on
from textual.app import App, SystemCommand
from textual.binding import Binding
from textual.dom import DOMNode
from textual.screen import Screen

from medsft.core.printable import printable
from medsft.core.run.rundir import RunDir
from medsft.tui.palette import Palette
from medsft.tui.themes import DARK, LIGHT
from medsft.tui.widgets.dialogs import TextDialog, key_help
from medsft.tui.widgets.navigation import ShowMonitor, ShowRuns

Start = Literal["wizard", "monitor", "runs"]


_OBVIOUS = ("ctrl+q", "ctrl+c", "super+c", "tab", "shift+tab")


class MedsftApp(App[int]):
    """Shows the wizard, the monitor of one run, or the list of runs. Returns an exit code."""

    TITLE = "medsft"
    CSS_PATH = "app.tcss"
    HORIZONTAL_BREAKPOINTS = [(0, "-tiny"), (60, "-narrow"), (110, "-wide")]
    VERTICAL_BREAKPOINTS = [(0, "-flat"), (20, "-low"), (24, "-short"), (34, "-tall")]
    BINDINGS = [
        Binding("t", "theme", "Theme", show=False, tooltip="Switch between the dark and the light theme"),
    ]

    def __init__(
        self,
        start: Start,
        *,
        run: RunDir | None = None,
        runs_folder: Path = Path("runs"),
        settings_file: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        self._start = start
        self._run_dir = run
        self.runs_folder = runs_folder
        self.settings_file = settings_file
        self.clock = clock

    def on_mount(self) -> None:
        """Set the theme and show the first screen."""
        self.register_theme(DARK)
        self.register_theme(LIGHT)
        if "TEXTUAL_THEME" not in os.environ:
            self.theme = DARK.name
        if "SSH_CONNECTION" in os.environ:
            self.animation_level = "none"
        self.push_screen(self._first_screen())

    def _first_screen(self) -> Screen[Any]:
        if self._start == "monitor":
            from medsft.tui.screens.monitor import MonitorScreen

            if self._run_dir is None:
                raise ValueError("the monitor needs a run")
            return MonitorScreen(self._run_dir)
        if self._start == "runs":
            from medsft.tui.screens.runs import RunsScreen

            return RunsScreen(self.runs_folder)
        from medsft.tui.wizard.screen import WizardScreen

        return WizardScreen(self.settings_file)

    @on(ShowMonitor)
    def show_monitor(self, event: ShowMonitor) -> None:
        """Open the monitor of a run on top of the screen that asks for it."""
        from medsft.tui.screens.monitor import MonitorScreen

        self.push_screen(MonitorScreen(event.run))

    @on(ShowRuns)
    def show_runs(self, event: ShowRuns) -> None:
        """Put the list of runs in the place of the screen that asks for it."""
        from medsft.tui.screens.runs import RunsScreen

        self.switch_screen(RunsScreen(event.folder))

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """Offer every key of the screen in the command palette too, each action once."""
        offered = {"app.command_palette"}
        for node, binding, enabled, tooltip in screen.active_bindings.values():
            if enabled and binding.description and binding.action not in offered and binding.key not in _OBVIOUS:
                offered.add(binding.action)
                yield SystemCommand(binding.description, tooltip or binding.tooltip, partial(self._run, node, binding.action))

    async def _run(self, node: DOMNode, action: str) -> None:
        await self.run_action(action, default_namespace=node)

    def action_command_palette(self) -> None:
        """Show the command palette."""
        if not Palette.is_open(self):  # type: ignore[arg-type]
            self.push_screen(Palette(id="--command-palette"))

    def action_keys(self) -> None:
        """Show what this screen is for and what its keys do."""
        screen = self.screen
        shown = {
            active.binding.action: active  # of several keys for one action the first
            for active in reversed(screen.active_bindings.values())
            if active.binding.description and active.node in (screen, self) and active.binding.key not in _OBVIOUS
        }
        rows = [
            (self.get_key_display(active.binding), active.binding.description, active.tooltip or active.binding.tooltip)
            for active in reversed(shown.values())
        ]
        self.push_screen(TextDialog("Help", key_help(screen.HELP or "", rows)))

    def action_theme(self) -> None:
        """Switch between dark and light."""
        self.theme = LIGHT.name if self.current_theme.dark else DARK.name

    def notify(self, message: str, *, markup: bool = False, **options: Any) -> None:
        """Show a message for a while: as it is, never as markup, because paths and errors are in it."""
        super().notify(printable(message), markup=False, **options)

    def copy_to_clipboard(self, text: str) -> None:
        """Copy a text without what would steer the terminal that it is pasted into."""
        super().copy_to_clipboard(printable(text))

    def _fatal_error(self) -> None:
        """End. Textual would print the values of variables, which may be of a record; `run_app` raises the error instead."""
        self._close_messages_no_wait()

    def action_leave(self) -> None:
        """Close the view."""
        self.exit(0)


def run_app(
    start: Start,
    *,
    run: RunDir | None = None,
    runs_folder: Path = Path("runs"),
    settings_file: Path | None = None,
) -> int:
    """Run the app until the person leaves, and return the exit code. Raises what the app could not deal with."""
    app = MedsftApp(start, run=run, runs_folder=runs_folder, settings_file=settings_file)
    if "TEXTUAL_DRIVER" in os.environ:  # in the browser that `medsft serve` talks to
        from medsft.tui.browser.driver import BrowserDriver

        app.driver_class = BrowserDriver
    code = app.run()
    if app._exception is not None:
        raise getattr(app._exception, "error", app._exception)  # what a worker failed with
    return code or 0
