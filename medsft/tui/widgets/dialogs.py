"""Dialogs over a screen: a question, and a page of text."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Static

from medsft.tui.widgets.text import shown

COMMON = (
    Binding("question_mark", "app.keys", "Help", key_display="?", tooltip="Show this page"),
    Binding("q", "app.leave", "Leave", tooltip="Close this view; training continues"),
)
"""First in the footer of each screen, so that a narrow one does not cut them off."""


class Confirm(ModalScreen[bool]):
    """Asks one question. `enter` on the focused button, `y` or `n` answer; the safe answer has the focus."""

    BINDINGS = [
        Binding("y", "answer(True)", "Yes"),
        Binding("n,escape,q", "answer(False)", "No"),
        Binding("left,up", "app.focus_previous", show=False),
        Binding("right,down", "app.focus_next", show=False),
    ]

    def __init__(self, question: str, detail: str = "", *, yes: str = "Yes", no: str = "No", danger: bool = False) -> None:
        super().__init__()
        self._question, self._detail, self._yes, self._no, self._danger = question, detail, yes, no, danger

    def compose(self) -> ComposeResult:
        """Lay out the question and both answers."""
        with Vertical(id="dialog"):
            yield Static(shown(self._question), id="question")
            if self._detail:
                yield Static(shown(self._detail), id="detail")
            with Horizontal(id="answers"):
                yield Button(f"{self._no} (n)", id="no")
                yield Button(f"{self._yes} (y)", id="yes", variant="error" if self._danger else "primary")

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Take the button's answer."""
        self.dismiss(event.button.id == "yes")

    def action_answer(self, answer: bool) -> None:
        """Take the key's answer."""
        self.dismiss(answer)


class TextDialog(ModalScreen[None]):
    """Shows text that scrolls; any of `escape`, `q`, `enter` closes it."""

    BINDINGS = [Binding("escape,q,enter,question_mark", "dismiss", "Close")]

    def __init__(self, title: str, content: Content | str) -> None:
        super().__init__()
        self._title, self._content = title, content

    def compose(self) -> ComposeResult:
        """Lay out the text in a frame that carries the title."""
        with VerticalScroll(id="page") as page:
            page.border_title = self._title
            page.border_subtitle = "arrows scroll · esc closes"
            yield Static(shown(self._content))


def key_help(screen_help: str, bindings: list[tuple[str, str, str]]) -> Content:
    """Return the help of a screen: what it is for, then (key, name, what it does) of each binding."""
    paragraphs = (" ".join(text.split()) for text in screen_help.split("\n\n"))  # a dialog breaks lines at its own width
    parts: list[Content | str] = ["\n\n".join(paragraphs), "\n\n"]
    for key, name, what in bindings:
        parts += [Content.styled(f"{key:>8}  ", "bold $accent"), name, f": {what}" if what else "", "\n"]
    return Content.assemble(*parts)
