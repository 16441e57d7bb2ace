"""A line to type in that leaves up and down to the form."""

from textual.binding import Binding
from textual.widgets import Input


class TextField(Input):
    """Textual's, but up and down go to the field above or below: its own would scroll the page under the cursor."""

    BINDINGS = [
        Binding("up", "app.focus_previous", "Field above", show=False),
        Binding("down", "app.focus_next", "Field below", show=False),
    ]
