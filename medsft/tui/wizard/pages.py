"""The pages of the wizard. Each shows a `State` and posts what a person did; none of them computes or keeps anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Button, Input, OptionList, Static
from textual.widgets.option_list import Option

from medsft.core.config.command import command_line
from medsft.core.config.row_options import USED_BY
from medsft.core.data.sources.endings import ROW_FILE_ENDINGS
from medsft.tui.widgets.samples import show_samples
from medsft.tui.widgets.text import put, shown
from medsft.tui.widgets.textfield import TextField
from medsft.tui.wizard import plan_text as words
from medsft.tui.wizard.fields import Choice, FieldRow
from medsft.tui.wizard.form import AUTO, default_text, fields_in, problems_of, row_fields, told_key
from medsft.tui.wizard.messages import Edited, State, Wanted
from medsft.tui.wizard.page import Page
from medsft.tui.wizard.paths import PathSuggester
from medsft.tui.wizard.training import TrainingPage

if TYPE_CHECKING:
    from medsft.core.data.sources.recognize import RecognizedFiles
    from medsft.tui.wizard.backend import BaseEntry

_ROW_FIELDS = tuple(name for name in fields_in("data", advanced=False) if name in USED_BY)
_MOST_STAGES = 16


class BasePage(Page):
    """Which model to start from."""

    title = "Base model"
    lead = "Press enter on the model to start from, or search a folder below."
    _listed: object = None
    _count = 0

    def content(self) -> ComposeResult:
        """Yield the list, the search, and the iteration to start from."""
        yield OptionList(id="entries", compact=True)
        search = PathSuggester((".gguf",))
        yield TextField(
            placeholder="folder to search, or path of a model, then enter", id="look", compact=True, suggester=search
        )
        yield Static(id="base-problems", classes="problem")
        yield self.row("intermediate_iter")
        yield from self.advanced("base")

    def first_field(self) -> Widget | None:
        """Return the list, or the search when there is nothing to choose from."""
        return self.query_one("#entries" if self._count else "#look")

    @property
    def waits(self) -> bool:
        """Whether the cursor is on the list or on an empty search."""
        focused, search = self.screen.focused, self.query_one("#look", Input)
        return focused is self.query_one("#entries") or (focused is search and not search.value)

    def point_at(self, number: int) -> None:
        """Put the list's cursor on an entry."""
        self.query_one("#entries", OptionList).highlighted = number

    def show(self, state: State) -> None:
        """Show the entries with the chosen one marked."""
        super().show(state)
        listed = [(entry, _is_chosen(entry, state)) for entry in state.entries]
        if (listed, state.looking) != self._listed:
            self._listed = (listed, state.looking)
            self._list(listed, state.looking)
        wrong = [*problems_of("checkpoint", state.problems), *problems_of("size", state.problems)]
        place = self.query_one("#base-problems", Static)
        place.display = bool(wrong)
        put(place, words.beside(wrong))

    def _list(self, listed: list[tuple[BaseEntry, bool]], looking: bool) -> None:
        self._count = len(listed)
        entries = self.query_one("#entries", OptionList)
        at = entries.highlighted
        entries.clear_options()
        entries.add_options(Option(shown(words.entry_text(entry, chosen))) for entry, chosen in listed)
        if listed:
            first = next((number for number, (_, chosen) in enumerate(listed) if chosen), 0)
            entries.highlighted = first if at is None else min(at, len(listed) - 1)
        else:
            nothing = "Looking ..." if looking else "No models in medsft.toml yet: search a folder below."
            entries.add_option(Option(nothing, disabled=True))

    @on(OptionList.OptionSelected)
    def choose(self, event: OptionList.OptionSelected) -> None:
        """Pass on which entry was chosen."""
        self.post_message(Wanted("choose", event.option_index))

    @on(Input.Submitted, "#look")
    def look(self, event: Input.Submitted) -> None:
        """Pass on where to look."""
        self.post_message(Wanted("look", event.value.strip()))


def _is_chosen(entry: BaseEntry, state: State) -> bool:
    return entry.listed and (entry.name, entry.size) == (state.config.checkpoint, state.config.size)


class DataPage(Page):
    """Which rows to learn from, and how they are read."""

    title = "Dataset"
    lead = "Rows to train on: JSONL, a JSON array, CSV or Parquet."

    def content(self) -> ComposeResult:
        """Yield files, keys, what becomes of them, and how long they are."""
        files = PathSuggester(ROW_FILE_ENDINGS)
        yield self.row("data", suggester=files)
        with Horizontal(classes="buttons"):
            yield Button("Browse files (f)", id="browse", compact=True)
            yield Button("Samples (v)", id="samples-button", name="samples", compact=True)
            yield Button("Tokenize (k)", id="tokenize", compact=True)
            yield Button("Check (c)", id="check", compact=True)
        yield self.row("run_name")
        yield Static("Or use a tokenized set:", id="sets-label", classes="help")
        yield Choice((), "", default="", id="sets")
        yield self.row("format")
        yield Static(id="rows", classes="help")
        for name in _ROW_FIELDS:
            yield self.row(name)
        yield Static(id="keys", classes="help")
        yield Static(id="samples")
        yield self.row("seq")
        yield self.row("truncate")
        yield Static(id="report")
        with Horizontal(classes="buttons", id="remedies"):
            yield Button("Raise seq (r)", id="raise", compact=True, variant="primary")
            yield Button("Drop long documents", id="drop", compact=True)
            yield Button("Cut long documents", id="cut", compact=True)
        yield self.row("template")
        yield self.row("val", suggester=files)
        yield self.row("tokenized_data_dir", suggester=PathSuggester())
        yield from self.advanced("data")

    def show(self, state: State) -> None:
        """Show keys, samples and lengths as they are known."""
        super().show(state)
        seen = state.outlook
        report = seen.report if seen else None
        self._show_sets(seen.sets if seen else (), state.config.run_name, bool(state.config.data))
        self._show_rows(seen.found if seen else None, state.texts)
        put(self.query_one("#keys", Static), words.keys_text(seen.keys if seen else None, seen.found if seen else None))
        put(self.query_one("#report", Static), words.report_text(report, state.config.truncate))
        self.query_one("#remedies").display = bool(report and report.exceeding)
        if report:
            self.query_one("#raise", Button).label = f"Raise seq to {report.fitting_seq:,} (r)"
        put(self.query_one("#samples", Static), self._samples(state))
        for button in ("#tokenize", "#check"):
            self.query_one(button, Button).disabled = bool(state.busy)

    def _show_rows(self, found: RecognizedFiles | None, texts: Mapping[str, str]) -> None:
        """Say how rows are read, and offer the keys that mean something then."""
        put(self.query_one("#rows", Static), "" if found is None else "\n".join(found.sentences))
        wanted = row_fields(found, texts)
        for row in self.query(FieldRow):
            if row.field in _ROW_FIELDS:
                row.display = row.field in wanted
                told = told_key(row.field, found)
                row.set_default(told, "told by the rows") if told else row.set_default(default_text(row.field))

    def _samples(self, state: State) -> Content:
        seen = state.outlook
        if seen is None or not (seen.samples or seen.samples_problem):
            return Content("")
        if not state.texts.get("checkpoint"):
            return Content.styled("Choose a base model to see samples.", "$text-muted")
        if seen.samples_problem:
            return Content.styled(f"No sample to show: {seen.samples_problem}", "$text-muted")
        title = Content.styled("As the model will read them:\n", "$text-muted")
        return title + show_samples(seen.samples, state.config)

    def _show_sets(self, sets: Sequence[str], run_name: str, new: bool) -> None:
        choice = self.query_one("#sets", Choice)
        choice.options = ("none", *sets)
        choice.value = run_name if run_name in sets and not new else "none"
        for part in (choice, self.query_one("#sets-label")):
            part.display = bool(sets)

    @on(Choice.Changed, "#sets")
    def choose_set(self, event: Choice.Changed) -> None:
        """Use a tokenized set instead of files."""
        event.stop()
        self.post_message(Edited(run_name="" if event.value == "none" else event.value, data=""))


class ParallelPage(Page):
    """How the model is divided over devices."""

    title = "Parallel"
    lead = "auto: the smallest sizes whose memory fits. Only sizes that this model can be split into are offered."

    def content(self) -> ComposeResult:
        """Yield parallel sizes, memory, and what several nodes need."""
        yield self.row("tp", (AUTO,))
        yield self.row("pp", (AUTO,))
        yield self.row("nproc_per_node")
        yield Static(id="memory")
        yield Static(id="kinds-in-memory")
        yield self.row("nodes")
        yield self.row("addr")
        yield self.row("rank")
        yield self.row("port")
        yield Static(id="commands")
        yield Button("Copy the commands", id="copy-nodes", compact=True)
        yield from self.advanced("parallel")

    def show(self, state: State) -> None:
        """Offer what this model allows, draw the memory, write the commands."""
        super().show(state)
        if state.model is not None:
            from medsft.core.planning.layout import valid_tensor_sizes

            sizes = [str(size) for size in valid_tensor_sizes(state.model)]
            stages = [str(size) for size in range(1, min(_MOST_STAGES, state.model.num_layers) + 1)]
            self.query_one("#field-tp", FieldRow).set_options((AUTO, *sizes))
            self.query_one("#field-pp", FieldRow).set_options((AUTO, *stages))
        plan = words.plan_of(state.outlook)
        memory = self.query_one("#memory", Static)
        beside = 61 if self.screen.has_class("-wide") else 6
        width = max(20, min(60, self.screen.size.width - beside))
        put(memory, words.memory_bar(plan.estimates, width) if plan else "Choose a base model and data to see the memory.")
        put(self.query_one("#kinds-in-memory", Static), words.kinds_text(plan))
        several = state.config.nodes > 1
        for name in ("addr", "rank", "port"):
            self.query_one(f"#field-{name}").display = several
        commands = self.query_one("#commands", Static)
        commands.display = self.query_one("#copy-nodes").display = several
        lines = words.node_lines(state.config) if several else []
        put(commands, "\n".join(f"node {rank}: {line}" for rank, line in enumerate(lines)))


class IterationsPage(Page):
    """The number of iterations, confirmed."""

    title = "Iterations"
    lead = "Accept with Next, or enter another number."
    to_read = True

    def content(self) -> ComposeResult:
        """Yield the sum, the field, and what it means."""
        yield Static(id="sum")
        yield self.row("iters")
        yield Static(id="meaning")

    def show(self, state: State) -> None:
        """Show the sum and its meaning."""
        super().show(state)
        put(self.query_one("#sum", Static), words.iterations_text(state.outlook))
        put(self.query_one("#meaning", Static), words.meaning(state.outlook))


class ReviewPage(Page):
    """Everything on one page, and the start."""

    title = "Review"
    lead = "The whole run. To start it, press s outside a field, or the button."
    to_read = True

    def content(self) -> ComposeResult:
        """Yield what blocks, the plan, the command, the TOML, and the start."""
        yield Static(id="blocking")
        with Horizontal(classes="buttons"):
            yield Button("Start (s)", id="start", variant="success", compact=True)
        yield Static(id="busy")
        yield Static(id="table")
        yield Static(id="command")
        with Horizontal(classes="buttons"):
            yield Button("Copy the command (y)", id="copy", compact=True)
        yield TextField("run.toml", id="toml", compact=True, suggester=PathSuggester((".toml",)))
        with Horizontal(classes="buttons"):
            yield Button("Save as TOML (w)", id="save", compact=True)

    def show(self, state: State) -> None:
        """Show the whole."""
        super().show(state)
        plan = words.plan_of(state.outlook)
        looking = state.outlook is None and not state.problems
        put(self.query_one("#blocking", Static), "Looking ..." if looking else words.problem_lines(state.problems))
        self.query_one("#start", Button).disabled = bool(state.problems or plan is None or state.busy)
        busy = self.query_one("#busy", Static)
        busy.display = bool(state.busy)
        put(busy, state.busy)
        put(self.query_one("#table", Static), self._table(state))
        label = Content.styled("The same from the command line:\n", "$text-muted")
        put(self.query_one("#command", Static), label + Content(command_line(state.config)))

    def _table(self, state: State) -> Content:
        seen = state.outlook
        if seen is None or seen.plan is None:
            return Content("")
        parts: list[Content | str] = []
        for row in words.rows_of(seen):
            parts += [Content.styled(f"{row.label:<18}", "$text-muted"), f"{row.text}\n"]
        parts += [Content.styled(f"! {warning}\n", "$warning") for warning in seen.plan.warnings]
        return Content.assemble(*parts)


PAGES: tuple[Callable[..., Page], ...] = (BasePage, DataPage, TrainingPage, ParallelPage, IterationsPage, ReviewPage)
