"""The tail of a log with a filter: keeps to the end until the reader scrolls up."""

from __future__ import annotations

from textual.events import Resize
from textual.reactive import reactive
from textual.widgets import RichLog


class LogLines(RichLog):
    """Shows the lines that hold `needle`, upper and lower case alike. Assign `source` to update."""

    source: reactive[tuple[str, ...]] = reactive(())
    needle: reactive[str] = reactive("")

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, max_lines=1000, min_width=1, wrap=True, markup=False, highlight=False, auto_scroll=True)
        self._written: tuple[str, ...] = ()

    def on_resize(self, event: Resize) -> None:
        """Wrap the lines anew."""
        self._written = ()
        self.clear()
        self._show()

    def watch_source(self) -> None:
        """Show new lines."""
        self._show()

    def watch_needle(self) -> None:
        """Show what the filter leaves."""
        self._show()

    def _show(self) -> None:
        wanted = tuple(line for line in self.source if self.needle.lower() in line.lower())
        at_end = self.is_vertical_scroll_end
        known = len(self._written)
        if wanted[:known] != self._written:
            self.clear()
            known = 0
        for line in wanted[known:]:
            self.write(line, scroll_end=at_end)
        self._written = wanted
