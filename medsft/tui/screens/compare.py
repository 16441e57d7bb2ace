"""The losses of several runs in one chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from textual.app import ComposeResult
from textual.binding import Binding
from textual.screen import Screen
from textual.widgets import Footer

from medsft.core.printable import one_line
from medsft.core.run.view import RunView
from medsft.tui.widgets.chart import Series
from medsft.tui.widgets.dialogs import COMMON
from medsft.tui.widgets.linechart import LineChart
from medsft.tui.widgets.sizehint import SizeHint

SIGNS = ("", "o", "x", "+", "*", "#", "@", "%")


class CompareScreen(Screen[None]):
    """Training or validation loss of some runs over their iterations."""

    HELP = "The loss of each marked run. The signs on the lines tell them apart without color."
    BINDINGS = [
        *COMMON,
        Binding("v", "validation", "Training/validation", tooltip="Switch between training and validation loss"),
        Binding("x", "log_scale", "Log scale", tooltip="Logarithmic y axis on and off"),
        Binding("escape", "app.pop_screen", "Back"),
    ]

    def __init__(self, views: Mapping[str, RunView]) -> None:
        super().__init__()
        self._views = views
        self._validation = False

    def compose(self) -> ComposeResult:
        """Lay out the chart."""
        yield SizeHint()
        yield LineChart(title="Training loss", id="compare")
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """Draw."""
        self._show()

    def action_validation(self) -> None:
        """Switch between the two losses."""
        self._validation = not self._validation
        self._show()

    def action_log_scale(self) -> None:
        """Switch the y axis."""
        chart = self.query_one(LineChart)
        chart.log_scale = not chart.log_scale

    def _show(self) -> None:
        chart = self.query_one(LineChart)
        chart.border_title = "Validation loss" if self._validation else "Training loss"
        names = [one_line(name) for name in short_names(list(self._views))]
        chart.series = tuple(
            Series(name, view.eval_steps, view.eval_series.get("loss", ()), sign)
            if self._validation
            else Series(name, view.steps, view.series.get("loss", ()), sign)
            for name, view, sign in zip(names, self._views.values(), SIGNS * len(names), strict=False)
        )


def short_names(names: Sequence[str]) -> list[str]:
    """Return the names without the parts between dashes that all of them begin with."""
    parts = [name.split("-") for name in names]
    shared = 0
    while all(len(part) > shared + 1 and part[shared] == parts[0][shared] for part in parts):
        shared += 1
    return ["-".join(part[shared:]) for part in parts] if len(names) > 1 else list(names)
