"""The steps of the wizard: where one is, and which of them have something to settle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textual.app import ComposeResult
from textual.containers import Container
from textual.message import Message
from textual.widgets import Static

from medsft.errors import Problem
from medsft.tui.widgets.text import put
from medsft.tui.wizard.form import FIELDS

_PAGE_OF_GROUP = {"base": 0, "data": 1, "adapter": 2, "training": 2, "output": 2, "parallel": 3}
_PAGE_OF_FIELD = {"iters": 4}


class Steps(Container):
    """A list of the steps, in a column or in a line."""

    @dataclass
    class Chosen(Message):
        """A step was clicked."""

        page: int

    def __init__(self, titles: Sequence[str], page: int) -> None:
        super().__init__(id="steps")
        self._titles = tuple(titles)
        self._page = page

    def compose(self) -> ComposeResult:
        """Lay out one line for each step."""
        for number, title in enumerate(self._titles):
            yield Static(f"{number + 1} {title} ", id=f"step-{number}", classes="step")

    def show(self, page: int, problems: Sequence[Problem]) -> None:
        """Mark the step one is at, and those with problems."""
        wrong = {page_of(problem) for problem in problems}
        for number, title in enumerate(self._titles):
            label = self.query_one(f"#step-{number}", Static)
            mark = "✖" if number in wrong else " "
            put(label, f"{number + 1}{mark}{title} ")
            label.set_class(number == page, "-current")
            label.set_class(number in wrong, "-wrong")

    def on_click(self, event: object) -> None:
        """Go to the step under the pointer."""
        widget = getattr(event, "widget", None)
        if widget is not None and widget.id and widget.id.startswith("step-"):
            self.post_message(self.Chosen(int(widget.id.removeprefix("step-"))))


def page_of(problem: Problem) -> int:
    """Return the page on which a problem can be settled: that of its field, else the review."""
    name = problem.where.split(",")[0].strip().removeprefix("--")
    if name in _PAGE_OF_FIELD:
        return _PAGE_OF_FIELD[name]
    return _PAGE_OF_GROUP[FIELDS[name].metadata["group"]] if name in FIELDS else 5
