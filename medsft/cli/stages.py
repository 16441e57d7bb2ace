"""Shows the progress of tokenising: a bar, or a line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from medsft.cli import console

if TYPE_CHECKING:
    from medsft.core.data.dataset import write

_SECONDS_BETWEEN_LINES = 5.0
_WORDS = {
    "wait": "waiting for another process",
    "hash": "reading the files",
    "check": "checking rows",
    "tokenise": "tokenising",
}


@contextmanager
def tokenising(*, plain: bool) -> Iterator[write.ProgressCallback]:
    """Yield a callback that shows what it is told on standard error. The bar appears when there is something to show."""
    if console.wants_lines(plain):
        yield _Lines()
        return
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("{task.fields[facts]}"))
    bar = Progress(*columns, console=console.note_console(), expand=True, transient=True)
    task = bar.add_task("", total=None, facts="")

    def show(progress: write.Progress) -> None:
        bar.start()
        total = progress.total_bytes or None
        words = _WORDS[progress.stage]
        bar.update(task, description=words, total=total, completed=progress.done_bytes, facts=_facts(progress))

    try:
        yield show
    finally:
        if bar.live.is_started:
            bar.stop()


class _Lines:
    """Prints a line when a stage begins and every few seconds."""

    def __init__(self) -> None:
        self._stage = ""
        self._printed = 0.0

    def __call__(self, progress: write.Progress) -> None:
        now = time.monotonic()
        if progress.stage != self._stage or now - self._printed >= _SECONDS_BETWEEN_LINES:
            self._stage, self._printed = progress.stage, now
            console.note(f"{_WORDS[progress.stage]}  {_facts(progress)}".rstrip())


def _facts(progress: write.Progress) -> str:
    from medsft.core.units import count, duration

    parts = []
    if progress.documents:
        parts.append(f"{count(progress.documents)} documents, {count(progress.documents_per_second)}/s")
    if progress.seconds_left is not None:
        parts.append(f"{duration(progress.seconds_left)} left")
    return ", ".join(parts)
