"""A conversation with the model of a run. What is said stays on the screen: nothing is stored."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Footer, Input, Static

from medsft.core.printable import one_line, printable
from medsft.core.run.rundir import RunDir
from medsft.errors import MedsftError
from medsft.tui.widgets.sizehint import SizeHint
from medsft.tui.widgets.text import put
from medsft.tui.widgets.textfield import Line

if TYPE_CHECKING:
    from medsft.core.evaluation.chat import Chat

_WAITS = "..."


class AskScreen(Screen[None]):
    """Asks the model of one run, and its base model where that is wanted."""

    HELP = """
A conversation with the run's model, in the template that it was trained with. Nothing of it is stored. With the base model,
each question gets both answers.
"""
    BINDINGS = [
        Binding("ctrl+n", "anew", "New", tooltip="Begin another conversation"),
        Binding("ctrl+b", "base", "With base", tooltip="Ask the base model, too, or no longer; begins another conversation"),
        Binding("f1", "app.keys", "Help", tooltip="Show this page"),
        Binding("escape", "leave", "Back", tooltip="Back to the monitor; what was said is gone"),
    ]

    def __init__(self, run: RunDir) -> None:
        super().__init__()
        self._run_dir = run
        self._chats: list[Chat] = []
        self._with_base = False
        self._gone = False

    def compose(self) -> ComposeResult:
        """Lay out what was said, and the line to type in."""
        yield SizeHint()
        yield VerticalScroll(id="said")
        yield Line(placeholder="a question", id="question")
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """Load the model while the person types."""
        self.query_one("#said").border_title = one_line(self._run_dir.path.name)
        self.query_one("#question", Input).focus()
        self.load()

    def on_unmount(self) -> None:
        """End the models' processes."""
        self._gone = True
        self._end_chats()

    def _end_chats(self) -> None:
        for chat in self._chats:
            chat.close()
        self._chats = []

    @work(thread=True, exclusive=True, group="ask")
    def load(self) -> None:
        """Start the processes of the models, and say when they are ready."""
        from medsft.core.evaluation.chat import Chat, Sampling  # these imports take longer than the first paint should
        from medsft.core.evaluation.model import find_base_of, find_model

        def loaded() -> str:
            path, with_base = self._run_dir.path, self._with_base
            models = [find_model(path), *([find_base_of(path)] if with_base else [])]
            chats = [Chat(model, Sampling()) for model in models]
            if self._gone or with_base != self._with_base:  # while the models were looked for
                for chat in chats:
                    chat.close()
                return ""
            self._chats = chats
            for chat in chats:
                chat.wait()
            return " ".join(["Ready.", *(note for model in models for note in model.notes)])

        self._show_from_thread(loaded)

    @on(Input.Submitted, "#question")
    def take(self, event: Input.Submitted) -> None:
        """Show a question and have it answered."""
        question = event.value.strip()
        if not question or any(worker.group == "ask" and worker.is_running for worker in self.workers):
            return
        event.input.value = ""
        self._add(Content.styled(printable(question), "bold"), "question")
        self.answer(question)

    @work(thread=True, exclusive=True, group="ask")
    def answer(self, question: str) -> None:
        """Let each model answer, piece by piece."""
        if not self._chats:
            self._show_from_thread(lambda: "No model is loaded.")
        from medsft.core.evaluation.chat import all_or_none

        chats = list(self._chats)
        try:
            with all_or_none(chats):
                for chat in chats:
                    self._show_answer(chat, question, f"{chat.model.name}\n" if len(chats) > 1 else "")
        except (MedsftError, OSError, ValueError) as error:
            text = str(error)
            self._show_from_thread(lambda: text)

    def _show_answer(self, chat: Chat, question: str, label: str) -> None:
        """Show the answer of one model as it comes, in a thread."""
        place = self.app.call_from_thread(self._add, f"{label}{_WAITS}", "answer")
        text = ""
        for piece in chat.ask(question):
            text += piece
            self.app.call_from_thread(self._update, place, f"{label}{text.strip() or _WAITS}")
        if not text.strip():
            self.app.call_from_thread(self._update, place, f"{label}(no answer: it ends at once)")

    async def action_anew(self) -> None:
        """Forget what was said."""
        for chat in self._chats:
            chat.forget()
        await self.query_one("#said").remove_children()

    async def action_base(self) -> None:
        """Ask the base model too, or no longer."""
        self._with_base = not self._with_base
        self._end_chats()
        await self.query_one("#said").remove_children()
        self.load()

    def action_leave(self) -> None:
        """Go back to the monitor."""
        self.dismiss()

    def _show_from_thread(self, words: Any) -> None:
        """Show what a function returns, or the error that it raises, as a remark between questions."""
        try:
            text = words()
        except (MedsftError, OSError, ValueError) as error:
            text = str(error)
        if not text:
            return
        with suppress(RuntimeError):  # the screen is gone
            self.app.call_from_thread(self._add, text, "remark")

    def _add(self, content: Content | str, kind: str) -> Static:
        place = Static(classes=kind)
        put(place, content)
        said = self.query_one("#said", VerticalScroll)
        said.mount(place)
        said.scroll_end(animate=False)
        return place

    def _update(self, place: Static, text: str) -> None:
        put(place, text)
        self.query_one("#said", VerticalScroll).scroll_end(animate=False)
