"""A line to type in that leaves up and down to the form."""

from textual.binding import Binding
from textual.widgets import Input


class TextField(Input):
    """Textual's, but up and down are the screen's `move`: its own would scroll the page under the cursor."""

    BINDINGS = [
        Binding("up", "screen.move(-1)", "Field above", show=False),
        Binding("down", "screen.move(1)", "Field below", show=False),
    ]
