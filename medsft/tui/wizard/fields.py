"""One field of the form: label, control, help, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.suggester import Suggester
from textual.widget import Widget
from textual.widgets import Input, Label, Static

from medsft.errors import Problem
from medsft.tui.widgets.text import put, shown
from medsft.tui.widgets.textfield import TextField
from medsft.tui.wizard.form import AUTO, choices_of, default_text, help_of, label_of
from medsft.tui.wizard.plan_text import beside


class Choice(Widget, can_focus=True):
    """A choice of a few words in one line; left and right change it. The chosen one has a filled dot."""

    BINDINGS = [
        Binding("left", "move(-1)", "Change", show=False),
        Binding("right,space,enter", "move(1)", "Change", show=False),
    ]
    options: reactive[tuple[str, ...]] = reactive((), layout=True)
    value: reactive[str] = reactive("")

    @dataclass
    class Changed(Message):
        """Another option was chosen by a person."""

        choice: Choice
        value: str

        @property
        def control(self) -> Choice:
            """The choice, for selectors."""
            return self.choice

    def __init__(self, options: Sequence[str], value: str, *, default: str, id: str | None = None) -> None:
        super().__init__(id=id)
        self.default = default
        self.set_reactive(Choice.options, tuple(options))
        self.set_reactive(Choice.value, value)

    def render(self) -> Content:
        """Return all options in a line; what does not fit wraps."""
        parts: list[Content | str] = []
        for option in self.options:
            chosen = option == self.value
            name = f"{'●' if chosen else '○'} {option}{' (default)' if option == self.default else ''}"
            parts += [Content.styled(name, "bold" if chosen else "$text-muted"), "  "]
        return shown(Content.assemble(*parts))

    def action_move(self, by: int) -> None:
        """Choose a neighbor."""
        if self.options:
            at = self.options.index(self.value) if self.value in self.options else 0
            self.value = self.options[(at + by) % len(self.options)]
            self.post_message(self.Changed(self, self.value))

    def on_click(self) -> None:
        """Choose the next one."""
        self.action_move(1)


class FieldRow(Vertical):
    """A field of `RunConfig`. Posts `Edited` with the text; an empty one is the default."""

    @dataclass
    class Edited(Message):
        """A person changed the field."""

        name: str
        text: str

    def __init__(self, name: str, text: str, *, options: Sequence[str] = (), suggester: Suggester | None = None) -> None:
        super().__init__(id=f"field-{name}", classes="field")
        self.field = name
        self._text = text
        self._options = tuple(options) or choices_of(name)
        self._suggester = suggester

    def compose(self) -> ComposeResult:
        """Lay out label, control, help and the place for problems."""
        with Horizontal(classes="entry"):
            yield Label(label_of(self.field), classes="label")
            if self._options:
                default = default_text(self.field) or AUTO
                yield Choice(self._options, self._text or default, default=default)
            else:
                default = default_text(self.field)
                yield TextField(
                    self._text, placeholder=_hint(default), compact=True, suggester=self._suggester, select_on_focus=False
                )
        yield Static(shown(help_of(self.field)), classes="help")
        yield Static(classes="problem")

    def on_mount(self) -> None:
        """Nothing is known to be wrong yet."""
        self.query_one(".problem").display = False

    @on(Input.Changed)
    def typed(self, event: Input.Changed) -> None:
        """Pass a text on."""
        event.stop()
        if event.value != self._text:
            self._text = event.value
            self.post_message(self.Edited(self.field, event.value))

    @on(Choice.Changed)
    def chosen(self, event: Choice.Changed) -> None:
        """Pass a choice on."""
        event.stop()
        self._text = "" if event.value == event.choice.default else event.value
        self.post_message(self.Edited(self.field, self._text))

    @on(Input.Submitted)
    def next_field(self, event: Input.Submitted) -> None:
        """`enter` goes to the next field."""
        event.stop()
        self.screen.focus_next()

    def set_text(self, text: str) -> None:
        """Show another text without telling anybody."""
        if text == self._text:
            return
        self._text = text
        for field in self.query(Input):
            field.value = text
        for choice in self.query(Choice):
            choice.value = text or choice.default

    def set_default(self, text: str, of: str = "default") -> None:
        """Show another default in a field that is typed, and `of` what it is."""
        for field in self.query(Input):
            field.placeholder = _hint(text, of)

    def set_options(self, options: Sequence[str]) -> None:
        """Offer other options; the chosen one stays visible although it may not work."""
        choice = self.query_one(Choice)
        wanted = tuple(options)
        choice.options = wanted if choice.value in wanted else (*wanted, choice.value)

    def set_problems(self, problems: Sequence[Problem]) -> None:
        """Show what is wrong beside the field."""
        place = self.query_one(".problem", Static)
        place.display = bool(problems)
        self.set_class(bool(problems), "-wrong")
        put(place, beside(problems))


def _hint(default: str, of: str = "default") -> str:
    return f"{default} ({of})" if default else ""
