"""Which keys mean something on which page, and when."""

from __future__ import annotations

from medsft.tui.wizard.messages import State

BASE_PAGE, DATA_PAGE, TRAINING_PAGE, PARALLEL_PAGE, ITERATIONS_PAGE, REVIEW_PAGE = range(6)
TITLES = ("Base", "Data", "Training", "Parallel", "Iterations", "Review")
_OF_DATA_PAGE = ("browse", "tokenise", "raise", "samples")


def possible(what: str, page: int, state: State) -> bool | None:
    """Tell whether something can be done now: False on other pages (hidden), None when not yet (greyed out).

    A remedy without its problem is hidden too.
    """
    if page != (DATA_PAGE if what in _OF_DATA_PAGE else REVIEW_PAGE):
        return False
    seen = state.outlook
    if what == "raise":
        return bool(seen and seen.report and seen.report.exceeding)
    allowed = {
        "tokenise": bool(state.config.data) and not state.busy,
        "samples": bool(seen and seen.samples),
        "start": bool(seen and seen.plan and not state.problems and not state.busy),
    }
    return True if allowed.get(what, True) else None
