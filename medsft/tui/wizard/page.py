"""What every page of the wizard has: a title, its content, and the way on."""

from __future__ import annotations

from asyncio import Lock
from collections.abc import Mapping, Sequence

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Button, Collapsible, Static

from medsft.tui.wizard.fields import FieldRow
from medsft.tui.wizard.form import fields_in, problems_of
from medsft.tui.wizard.messages import State, Wanted
from medsft.tui.wizard.paths import PathSuggester


class Page(VerticalScroll, can_focus=False):
    """A page: a title, its content, and the way on. It is empty until it is filled: five hidden pages would delay the first."""

    BINDINGS = [  # instead of scrolling, which follows the focus
        Binding("up", "screen.move(-1)", "Field above", show=False),
        Binding("down", "screen.move(1)", "Field below", show=False),
    ]
    title = ""
    lead = ""
    to_read = False

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id, classes="page")
        self._texts: Mapping[str, str] | None = None
        self._filling = Lock()
        self.filled = False

    async def fill(self, texts: Mapping[str, str]) -> None:
        """Lay out the page with these texts, if it is not laid out yet."""
        async with self._filling:
            if not self.filled:
                self._texts = texts
                await self.recompose()
                self.filled = True

    def compose(self) -> ComposeResult:
        """Lay out the lead, the content, and the buttons back and on."""
        if self._texts is None:
            return
        yield Static(Content.assemble(Content.styled(self.title, "bold $primary"), "  ", Content(self.lead)), classes="lead")
        yield from self.content()
        with Horizontal(classes="way"):
            yield Button("Back", id="back", compact=True)
            yield Button("Next", id="next", compact=True, variant="primary")

    def content(self) -> ComposeResult:
        """Yield what is between lead and buttons."""
        yield from ()

    def row(self, name: str, options: Sequence[str] = (), suggester: PathSuggester | None = None) -> FieldRow:
        """Return the row of a field with its text so far."""
        return FieldRow(name, (self._texts or {}).get(name, ""), options=options, suggester=suggester)

    def advanced(self, group: str, title: str = "Advanced") -> ComposeResult:
        """Yield the folded fields of a group."""
        names = fields_in(group, advanced=True)
        with Collapsible(title=f"{title} ({len(names)})"):
            for name in names:
                yield self.row(name)

    def first_field(self) -> Widget | None:
        """Return where the cursor goes; None on a page that is there to be read."""
        fields = [widget for widget in self.query("Input, OptionList, Choice") if widget.focusable]
        return fields[0] if fields and not self.to_read else None

    def show(self, state: State) -> None:
        """Show a newer state."""
        for row in self.query(FieldRow):
            row.set_problems(problems_of(row.field, state.problems))

    @on(Button.Pressed)
    def pressed(self, event: Button.Pressed) -> None:
        """Pass on what a button is named after."""
        event.stop()
        self.post_message(Wanted(event.button.name or event.button.id or ""))
