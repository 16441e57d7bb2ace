"""Slow work of the wizard, told as `Busy` messages: how far it is, that it ended, and what went wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from textual.screen import Screen

from medsft.core.text.progress import progress_line
from medsft.errors import MedsftError
from medsft.tui.wizard.messages import Busy

if TYPE_CHECKING:
    from medsft.core.data.dataset.write import Progress

_TELL_SECONDS = 0.5
Result = TypeVar("Result")


def do_slowly(screen: Screen[None], action: Callable[[Callable[[Progress | str], None]], Result]) -> Result | None:
    """Do something in this worker thread of `screen`, and return its result; None when it did not work."""
    screen.post_message(Busy("Working ..."))
    told = 0.0

    def show(progress: Progress | str) -> None:
        nonlocal told
        if isinstance(progress, str):
            screen.post_message(Busy(progress))
        elif time.monotonic() - told > _TELL_SECONDS:
            told = time.monotonic()
            screen.post_message(Busy(progress_line(progress)))

    result, trouble = None, ""
    try:
        result = action(show)
    except (MedsftError, OSError) as error:
        trouble = str(error)
    screen.post_message(Busy("", trouble))
    return result
