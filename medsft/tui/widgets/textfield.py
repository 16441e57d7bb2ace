"""Lines to type in."""

from __future__ import annotations

from rich.text import Text
from textual.binding import Binding
from textual.widgets import Input

from medsft.core.printable import one_line


class Line(Input):
    """Textual's, but what steers a terminal is shown by signs: a text may be pasted, or proposed from names and rows."""

    @property
    def _value(self) -> Text:
        return Text(one_line(self.value), no_wrap=True, overflow="ignore", end="")


class TextField(Line):
    """Leaves up and down to the form: its own would scroll the page under the cursor."""

    BINDINGS = [
        Binding("up", "screen.move(-1)", "Field above", show=False),
        Binding("down", "screen.move(1)", "Field below", show=False),
    ]
