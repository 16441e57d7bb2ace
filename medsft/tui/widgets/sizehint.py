"""A line that asks for a larger terminal, visible only in one that is too small."""

from textual.widgets import Static


class SizeHint(Static):
    """Shown by the stylesheet below 60 columns or 20 rows."""

    def __init__(self) -> None:
        super().__init__("Please enlarge the terminal to 60x20 or more.")
