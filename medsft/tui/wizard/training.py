"""The page on what is trained, and how."""

from __future__ import annotations

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.widgets import Button, Static

from medsft.core.config.lora import FULL_8BIT, QLORA
from medsft.core.config.run_config import OF_ADAPTER
from medsft.core.text.adapter import smaller_kind
from medsft.tui.widgets.text import put
from medsft.tui.wizard import plan_text as words
from medsft.tui.wizard.fields import AUTO, FieldRow
from medsft.tui.wizard.form import FIELDS, choices_of, default_text, fields_in
from medsft.tui.wizard.messages import Edited, State
from medsft.tui.wizard.page import Page


class TrainingPage(Page):
    """What is trained: all weights or an adapter; how to learn, and where to keep it."""

    title = "Training"
    lead = "The defaults are those of the original recipe. Empty fields keep the default."

    def content(self) -> ComposeResult:
        """Yield the choice between all weights and an adapter with what each needs, the fields of training, and of output."""
        yield self.row("adapter")
        yield Static(id="kinds")
        with Horizontal(classes="buttons", id="smaller"):
            yield Button("Train with less", id="train-smaller", compact=True, variant="primary")
        for name in fields_in("adapter", advanced=False):
            if name != "adapter":
                yield self.row(name, (AUTO, *choices_of(name)) if name == "base_precision" else ())
        for name in fields_in("training", advanced=False):
            if name != "iters":
                yield self.row(name)
        for name in fields_in("output", advanced=False):
            yield self.row(name)
        yield from self.advanced("training")

    def show(self, state: State) -> None:
        """Show what each kind of training needs, and the options and defaults of the one that is chosen."""
        super().show(state)
        plan = words.plan_of(state.outlook)
        put(self.query_one("#kinds", Static), words.kinds_text(plan))
        smaller = smaller_kind(plan) if plan else None
        self.query_one("#smaller").display = smaller is not None
        self.query_one("#train-smaller", Button).label = f"Train with {smaller}, which fits"
        for row in self.query(FieldRow):
            if row.field in OF_ADAPTER and row.field != "adapter":
                row.display = state.config.adapter != "none" or bool(state.texts.get(row.field))
            if FIELDS[row.field].metadata["with_adapter"] is not None:
                row.set_default(default_text(row.field, state.config))

    @on(Button.Pressed, "#train-smaller")
    def train_smaller(self, event: Button.Pressed) -> None:
        """Choose the kind of training that the button names."""
        event.stop()
        event.prevent_default()  # of the page, which passes on what other buttons are named after
        if f"with {FULL_8BIT}," in str(event.button.label):
            self.post_message(Edited(optimizer="adamw8bit"))
            return
        quantized = f"with {QLORA}," in str(event.button.label)
        self.post_message(Edited(adapter="lora", base_precision="nf4" if quantized else ""))
