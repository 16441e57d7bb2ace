"""The widget around `medsft.tui.widgets.chart`: a border with the title, y labels, the lines, and the span of x below."""

from __future__ import annotations

from collections.abc import Sequence

from rich.segment import Segment
from rich.style import Style
from textual.reactive import reactive
from textual.strip import Strip
from textual.widget import Widget

from medsft.core.units import count
from medsft.tui.widgets.chart import Cell, Chart, Series, draw

_COLORS = ("primary", "warning", "success", "error", "accent", "secondary")
_DIM = Style(dim=True)
_MARGIN = 9
"""Columns of the y labels; the same for all charts, so that they line up."""


class LineChart(Widget):
    """Shows one or several series over the iterations. Assign a new tuple to `series` to redraw."""

    DEFAULT_CSS = """
    LineChart { height: 1fr; min-height: 4; color: $foreground; }
    """
    series: reactive[tuple[Series, ...]] = reactive((), layout=False)
    log_scale: reactive[bool] = reactive(False)
    empty = "no values yet"

    def __init__(self, *, title: str = "", id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self.border_title = title
        self._drawn: tuple[object, ...] | None = None
        self._strips: list[Strip] = []

    def watch_series(self) -> None:
        """Forget the drawn lines."""
        self._drawn = None

    def render_line(self, y: int) -> Strip:
        """Return one line of the widget; all lines are drawn at once and kept until something changes."""
        width, height = self.size
        styles = self._styles()
        key = (width, height, self.log_scale, styles)
        if key != self._drawn:
            self._drawn, self._strips = key, self._draw(width, height, styles)
        return self._strips[y] if y < len(self._strips) else Strip.blank(width, self.rich_style)

    def _styles(self) -> tuple[Style, ...]:
        variables = self.app.theme_variables
        base = self.rich_style
        return tuple(base + Style(color=_rich_color(variables.get(name, ""))) for name in _COLORS)

    def _draw(self, width: int, height: int, styles: Sequence[Style]) -> list[Strip]:
        legend = 1 if len(self.series) > 1 and height >= 6 else 0
        if height - 1 - legend < 1 or width < _MARGIN + 5:
            return []
        chart = draw(self.series, width - _MARGIN, height - 1 - legend, log=self.log_scale)
        if chart.x_range is None:
            return self._message(width, height)
        strips = [self._legend(width, styles)] if legend else []
        strips += [self._row(chart, row, styles) for row in range(len(chart.rows))]
        strips.append(self._axis(chart.x_range, width))
        return strips

    def _message(self, width: int, height: int) -> list[Strip]:
        style = self.rich_style
        text = self.empty[:width].center(width)
        return [Strip([Segment(text if y == height // 2 else " " * width, style)], width) for y in range(height)]

    def _row(self, chart: Chart, row: int, styles: Sequence[Style]) -> Strip:
        base = self.rich_style
        segments = [Segment(chart.labels.get(row, "").rjust(_MARGIN - 1) + "┤", base)]
        segments += [_segment(cell, base, styles) for cell in chart.rows[row]]
        return Strip(segments, _MARGIN + len(chart.rows[row])).simplify()

    def _axis(self, x_range: tuple[float, float], width: int) -> Strip:
        left, right = count(x_range[0]), count(x_range[1])
        name = "iteration, y logarithmic" if self.log_scale else "iteration"
        room = width - _MARGIN - len(left) - len(right)
        middle = name.center(room) if room > len(name) + 2 else " " * max(1, room)
        text = " " * _MARGIN + left + middle + right
        return Strip([Segment(text[:width].ljust(width), self.rich_style)], width)

    def _legend(self, width: int, styles: Sequence[Style]) -> Strip:
        segments: list[Segment] = []
        for number, line in enumerate(self.series):
            segments.append(Segment(f" {line.sign or '⣀'} ", styles[number % len(styles)]))
            segments.append(Segment(f"{line.label} ", self.rich_style))
        return Strip(segments).adjust_cell_length(width, self.rich_style)


def _segment(cell: Cell | None, base: Style, styles: Sequence[Style]) -> Segment:
    if cell is None:
        return Segment(" ", base)
    style = styles[cell.series % len(styles)]
    return Segment(cell.text, style if cell.strong else style + _DIM)


def _rich_color(value: str) -> str | None:
    from textual.color import Color, ColorParseError

    try:
        return Color.parse(value).rich_color.name if value else None
    except ColorParseError:
        return None  # an ANSI theme leaves the color to the terminal
