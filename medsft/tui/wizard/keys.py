"""Which keys mean something on which page, and when."""

from __future__ import annotations

from textual.binding import Binding

from medsft.tui.widgets.dialogs import COMMON
from medsft.tui.wizard.messages import State

BASE_PAGE, DATA_PAGE, TRAINING_PAGE, PARALLEL_PAGE, ITERATIONS_PAGE, REVIEW_PAGE = range(6)
TITLES = ("Base", "Data", "Training", "Parallel", "Iterations", "Review")
KEYS = [
    *COMMON,
    Binding("pageup", "page(-1)", "Back", priority=True, key_display="PgUp", tooltip="Previous step"),
    Binding("pagedown,ctrl+n", "page(1)", "Next", priority=True, key_display="PgDn", tooltip="Next step (also ctrl+n)"),
    Binding("escape", "leave_field", "Keys", tooltip="Leave the field; single keys then work"),
    *(Binding(str(n), f"go({n - 1})", title, show=False) for n, title in enumerate(TITLES, 1)),
    Binding("up", "move(-1)", "Field above", show=False),
    Binding("down", "move(1)", "Field below", show=False),
    Binding("f", "want('browse')", "Files", tooltip="Choose files of rows from a tree"),
    Binding("v", "want('samples')", "Samples", tooltip="Show the first rows as the model will read them"),
    Binding("k", "want('tokenize')", "Tokenize", tooltip="Tokenize now, to have exact counts"),
    Binding("c", "want('check')", "Check", tooltip="Look for repeats, odd answers and identifiers in the rows"),
    Binding("r", "want('raise')", "Raise seq", tooltip="Raise --seq to the longest document"),
    Binding("s", "want('start')", "Start", tooltip="Start the run; it continues when you leave"),
    Binding("w", "want('save')", "Save TOML", tooltip="Save the settings as TOML"),
    Binding("y", "want('copy')", "Copy", tooltip="Copy the equivalent command line"),
    Binding("x", "clear", "Clear", show=False, tooltip="Set all fields to their defaults"),
]
_OF_DATA_PAGE = ("browse", "tokenize", "check", "raise", "samples")


def possible(what: str, page: int, state: State) -> bool | None:
    """Tell whether something can be done now: False on other pages (hidden), None when not yet (grayed out).

    A remedy without its problem is hidden too.
    """
    if page != (DATA_PAGE if what in _OF_DATA_PAGE else REVIEW_PAGE):
        return False
    seen = state.outlook
    if what == "raise":
        return bool(seen and seen.report and seen.report.exceeding)
    allowed = {
        "tokenize": bool(state.config.data) and not state.busy,
        "check": bool(state.config.data) and not state.busy,
        "samples": bool(seen and seen.samples),
        "start": bool(seen and seen.plan and not state.problems and not state.busy),
    }
    return True if allowed.get(what, True) else None
