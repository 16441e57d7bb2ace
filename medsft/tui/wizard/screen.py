"""The wizard: keeps the texts, asks the core what they mean a moment after each edit, and shows the answer on its pages."""

from __future__ import annotations

from asyncio import sleep
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual import on, work
from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.reactive import reactive
from textual.screen import Screen
from textual.timer import Timer
from textual.widgets import ContentSwitcher, Footer, Input, Static
from textual.worker import get_current_worker

from medsft.core.config.command import command_line
from medsft.core.config.file import save_toml
from medsft.core.config.options import format_number
from medsft.core.run.draft import Draft, draft_path, load_draft, save_draft
from medsft.errors import MedsftError
from medsft.tui.widgets.dialogs import TextDialog
from medsft.tui.widgets.navigation import ShowMonitor
from medsft.tui.widgets.samples import show_samples
from medsft.tui.widgets.sizehint import SizeHint
from medsft.tui.widgets.text import put
from medsft.tui.wizard import backend as core
from medsft.tui.wizard import plan_text as words
from medsft.tui.wizard.busy import do_slowly
from medsft.tui.wizard.checking import check_rows
from medsft.tui.wizard.fields import FieldRow
from medsft.tui.wizard.form import FIELDS, parse, proposals
from medsft.tui.wizard.keys import DATA_PAGE, ITERATIONS_PAGE, KEYS, REVIEW_PAGE, TITLES, possible
from medsft.tui.wizard.messages import Busy, Edited, Entries, Looked, Started, State, Wanted
from medsft.tui.wizard.page import Page
from medsft.tui.wizard.pages import PAGES, BasePage
from medsft.tui.wizard.paths import FilePicker
from medsft.tui.wizard.state import renewed
from medsft.tui.wizard.steps import Steps

if TYPE_CHECKING:
    from medsft.core.data.sources.columns import KeyProposal
    from medsft.core.data.sources.recognize import RecognizedFiles

_SCROLLED_LINES = 3
_BETWEEN_PAGES_SECONDS = 0.05
SETTLE_SECONDS = 0.35
"""Pause after the last edit before the plan is made anew."""


class WizardScreen(Screen[None]):
    """Describes a run step by step and starts it."""

    AUTO_FOCUS = ""  # textual's choice, after a dialog, would be a field of a page that is hidden
    HELP = """
Six steps from a base model to a run. Page down shows the next step, page up the previous one; or press esc to leave a field,
and then the number of a step. Up, down and tab move between fields, left and right change a choice, right completes a path.

The plan is updated after each edit. A problem is shown beside its field and on the last page. What you typed is kept when
you leave the wizard. Empty fields have their default.
"""
    BINDINGS = [*KEYS]
    page: reactive[int] = reactive(0, init=False)
    state: reactive[State] = reactive(lambda: State(texts={}, config=parse({})[0]), init=False)

    def __init__(self, settings_file: Path | None, *, draft_file: Path | None = None) -> None:
        super().__init__()
        self.settings_file = settings_file
        self._draft_file = draft_file or draft_path()
        draft = load_draft(self._draft_file)
        self._texts = {name: text for name, text in draft.texts.items() if name in FIELDS}
        self._proposed: dict[str, str] = {}
        self._serial = 0
        self._timer: Timer | None = None
        self._known: tuple[core.BaseEntry, ...] = ()
        self._found: tuple[core.BaseEntry, ...] = ()
        self.set_reactive(WizardScreen.page, min(max(draft.page, 0), len(PAGES) - 1))

    def compose(self) -> ComposeResult:
        """Lay out steps, pages and the plan; the stylesheet puts them beside or below each other."""
        yield SizeHint()
        with Horizontal(id="wizard"):
            yield Steps(TITLES, self.page)
            with ContentSwitcher(id="pages", initial=f"page-{self.page}"):
                for number, make in enumerate(PAGES):
                    yield make(id=f"page-{number}")
            with VerticalScroll(id="outlook", can_focus=False):
                yield Static(id="outlook-text")
        yield Static(id="strip")
        yield Footer(compact=True, show_command_palette=False)

    async def on_mount(self) -> None:
        """Show the draft; look at it, and lay out the other pages, when that is on the screen."""
        self.query_one("#outlook").border_title = "The plan so far"
        await self._current().fill(self._texts)
        self._refresh()
        self._focus_page()
        self.call_after_refresh(self._begin)

    def _begin(self) -> None:
        self.list_bases()
        self.look()
        self.fill_pages()

    @work(group="fill")
    async def fill_pages(self) -> None:
        """Lay out the pages that were not visited yet, with pauses for keys."""
        for page in self.query(Page):
            await page.fill(self._texts)
            await sleep(_BETWEEN_PAGES_SECONDS)

    # Edits

    @on(FieldRow.Edited)
    def edit_one(self, event: FieldRow.Edited) -> None:
        """Take over an edit."""
        self._proposed.pop(event.name, None)
        self._take({event.name: event.text})

    @on(Edited)
    def edit_several(self, event: Edited) -> None:
        """Take over several edits."""
        self.edit(**event.texts)

    def edit(self, **texts: str) -> None:
        """Change texts and show them in their fields."""
        for row in self.query(FieldRow):
            if row.field in texts:
                row.set_text(texts[row.field])
        self._take(texts)

    def _take(self, texts: Mapping[str, str]) -> None:
        """Keep texts, and look at them a moment later. The field that was edited is left alone: it may be ahead of this."""
        self._texts = {name: text for name, text in {**self._texts, **texts}.items() if text}
        self._keep()
        self._refresh()
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_timer(SETTLE_SECONDS, self.look)

    def _keep(self) -> None:
        try:
            save_draft(self._draft_file, Draft(self._texts, self.page))
        except MedsftError as error:
            self.notify(f"The draft cannot be kept: {error}", severity="warning", markup=False)

    def _refresh(self, **changes: Any) -> None:
        """Make the state anew from the texts and the latest outlook."""
        self.state = renewed(self.state, self._texts, **changes)

    def watch_state(self, state: State) -> None:
        """Show the state on the page in front, in the steps, and beside them."""
        if self._current().filled:
            self._current().show(state)
        put(self.query_one("#outlook-text", Static), words.panel(state.outlook, state.problems, 30))
        put(self.query_one("#strip", Static), state.busy or words.strip(state.outlook, state.problems))
        self.query_one(Steps).show(self.page, state.problems)
        self.refresh_bindings()

    # Pages

    def _current(self) -> Page:
        return self.query_one(f"#page-{self.page}", Page)

    async def watch_page(self, page: int) -> None:
        """Bring a page to the front."""
        self.query_one("#pages", ContentSwitcher).current = f"page-{page}"
        await self._current().fill(self._texts)
        self._keep()
        self.watch_state(self.state)
        if self.focused is not None:  # else single keys are in use, and a field would swallow the next one
            self._focus_page()
        if page == DATA_PAGE:
            self.look()

    def _focus_page(self) -> None:
        self.set_focus(self._current().first_field())

    def action_page(self, by: int) -> None:
        """Go on or back."""
        self.page = min(max(self.page + by, 0), len(PAGES) - 1)

    def action_go(self, page: int) -> None:
        """Go to a page."""
        self.page = page

    @on(Steps.Chosen)
    def go_to(self, event: Steps.Chosen) -> None:
        """Go to a page by its name."""
        self.page = event.page

    def action_move(self, by: int) -> None:
        """Go to the next field, no further than the first and the last; or scroll the page that is there to be read."""
        if self.page == REVIEW_PAGE:
            self._current().scroll_relative(y=by * _SCROLLED_LINES)
        elif self.focused is None or self.focused is not self.focus_chain[-1 if by > 0 else 0]:
            self.focus_next() if by > 0 else self.focus_previous()

    def action_leave_field(self) -> None:
        """Give the keys back to the screen."""
        self.set_focus(None)

    def action_clear(self) -> None:
        """Begin anew."""
        self._proposed.clear()
        self.edit(**dict.fromkeys(self._texts, ""))

    # What the core says

    @work(thread=True, exclusive=True, group="look")
    def look(self) -> None:
        """Plan what can be planned, in a thread."""
        worker = get_current_worker()
        self._serial += 1
        serial = self._serial
        config, _ = parse(self._texts)
        found = core.look_ahead(config, self.settings_file, samples=self.page == DATA_PAGE)
        if not worker.is_cancelled:
            self.post_message(Looked(found, serial))

    @on(Looked)
    def looked(self, event: Looked) -> None:
        """Show what the core says, unless a later look is on its way."""
        if event.serial != self._serial:
            return
        seen = event.outlook
        if not seen.samples and not seen.samples_problem and self.page != DATA_PAGE and self.state.outlook:
            seen = replace(seen, samples=self.state.outlook.samples)
        if seen.report and self.state.outlook and not self.state.outlook.report:
            self.notify(words.report_text(seen.report, seen.config.truncate).plain, title="Lengths", timeout=10, markup=False)
        self._refresh(outlook=seen)
        self._propose(seen.keys, seen.found)

    def _propose(self, keys: KeyProposal | None, found: RecognizedFiles | None) -> None:
        """Fill in what the rows and the file's name suggest, where a person has not typed anything."""
        if keys is None:
            return
        changes = proposals(self._texts, self._proposed, self.state.config, keys, found)
        if changes:
            self._proposed |= changes
            self.edit(**changes)

    # Base models

    @work(thread=True, exclusive=True, group="bases")
    def list_bases(self) -> None:
        """Look at the models of medsft.toml."""
        try:
            self.post_message(Entries(tuple(core.base_entries(self.settings_file)), found=False))
        except MedsftError as error:
            self.post_message(Entries((), found=False, trouble=str(error)))

    @work(thread=True, exclusive=True, group="bases")
    def find_bases(self, path: Path) -> None:
        """Search a folder for models."""
        try:
            entries = tuple(core.find_bases(path))
            trouble = "" if entries else f"No model in {path}"
            self.post_message(Entries(entries, found=True, trouble=trouble))
        except (MedsftError, OSError) as error:
            self.post_message(Entries((), found=True, trouble=str(error)))

    @on(Entries)
    def show_entries(self, event: Entries) -> None:
        """Show models, those of medsft.toml first."""
        if event.found:
            self._found = event.entries
        else:
            self._known = event.entries
        if event.trouble:
            self.notify(event.trouble, severity="error", timeout=10, markup=False)
        known = {entry.path.resolve() for entry in self._known}
        entries = (*self._known, *(entry for entry in self._found if entry.path.resolve() not in known))
        self._refresh(entries=entries, looking=False)
        self._go_to_entries(event)
        if len(self._known) == 1 and not self._texts.get("checkpoint"):
            self._choose(self._known[0])

    def _go_to_entries(self, event: Entries) -> None:
        """Put the cursor where the next step is, unless somebody is busy elsewhere."""
        page = self._current()
        if isinstance(page, BasePage) and page.filled:
            success = event.found and bool(event.entries)
            if success or page.waits:
                self._focus_page()
            if success:
                page.point_at(min(len(self._known), len(self.state.entries) - 1))

    def _choose(self, entry: core.BaseEntry) -> None:
        if not entry.listed:
            try:
                self.notify(f"Added to {core.add_base(entry, self.settings_file)}", markup=False)
            except (MedsftError, OSError) as error:
                self.notify(str(error), severity="error", markup=False)
                return
            self.list_bases()
        self.edit(checkpoint=entry.name, size=format_number(entry.size), intermediate_iter="")

    # What a person wants done

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Hide the keys of other pages, gray out what is not possible."""
        if action == "leave_field":
            return self.focused is not None
        return possible(str(parameters[0]), self.page, self.state) if action == "want" else True

    def action_want(self, what: str) -> None:
        """Do what a key stands for."""
        self.post_message(Wanted(what))

    @on(Wanted)
    def do(self, event: Wanted) -> None:
        """Do what a button or a key stands for."""
        report = self.state.outlook.report if self.state.outlook else None
        match event.what:
            case "back" | "next":
                self.action_page(1 if event.what == "next" else -1)
            case "choose":
                self._choose(self.state.entries[int(str(event.value))])
            case "look" if event.value:
                self.find_bases(Path(str(event.value)).expanduser())
            case "browse":
                self.browse()
            case "tokenize":
                self.tokenize()
            case "check":
                self.run_worker(partial(check_rows, self, self.state.config), thread=True, exclusive=True, group="slow")
            case "samples" if self.state.outlook:
                shown = show_samples(self.state.outlook.samples, self.state.config)
                self.app.push_screen(TextDialog("The first rows, as the model will read them", shown))
            case "raise" if report:
                self.edit(seq=str(report.fitting_seq))
            case "drop" | "cut":
                self.edit(truncate="drop" if event.what == "drop" else "keep")
            case "copy":
                self._copy(command_line(self.state.config))
            case "copy-nodes":
                self._copy("\n".join(words.node_lines(self.state.config)))
            case "save":
                self._save()
            case "start":
                self.start()

    def _copy(self, text: str) -> None:
        self.app.copy_to_clipboard(text)
        self.notify(text, title="Copied", markup=False)

    def _save(self) -> None:
        path = Path(self.query_one("#toml", Input).value.strip() or "run.toml").expanduser()
        try:
            save_toml(self.state.config, path)
        except (MedsftError, OSError, ValueError) as error:
            self.notify(str(error), title="Not saved", severity="error", markup=False)
        else:
            self.notify(f"medsft sft --config {path}", title="Saved", markup=False)

    @work
    async def browse(self) -> None:
        """Choose files from a tree."""
        text = await self.app.push_screen_wait(FilePicker.of(self._texts.get("data", "")))
        if text is not None:
            self.edit(data=text)

    @work(thread=True, exclusive=True, group="slow")
    def tokenize(self) -> None:
        """Make the tokenized sets."""
        do_slowly(self, lambda progress: core.tokenize(self.state.config, self.settings_file, progress))

    @work(thread=True, exclusive=True, group="slow")
    def start(self) -> None:
        """Tokenize where needed, and start the run."""
        plan = words.plan_of(self.state.outlook)
        expected = plan.num_iterations if plan else 0
        config = self.state.config
        result = do_slowly(self, lambda progress: core.start_run(config, self.settings_file, expected, progress))
        if result is not None:
            self.post_message(Started(result))

    @on(Busy)
    def show_busy(self, event: Busy) -> None:
        """Show progress; at the end look again."""
        self._refresh(busy=event.text)
        if event.trouble:
            self.notify(event.trouble, title="That did not work", severity="error", timeout=20, markup=False)
        if not event.text:
            self.look()

    @on(Started)
    def started(self, event: Started) -> None:
        """Watch the run, or ask for the number of iterations again."""
        if isinstance(event.result, int):
            self.page = ITERATIONS_PAGE
            text = f"The tokenized set gives {event.result:,} iterations. Check the number, then start again."
            self.notify(text, severity="warning")
            return
        self.post_message(ShowMonitor(event.result))
