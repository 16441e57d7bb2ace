"""Shows the progress of tokenizing, as a bar or a line every few seconds, how rows are read, and what a run is asked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from medsft.cli import console
from medsft.core.text.progress import amount_text, progress_line, stage_line, stage_text

if TYPE_CHECKING:
    from medsft.core.config.run_config import RunConfig
    from medsft.core.data.dataset import write
    from medsft.core.planning.plan import RunPlan

_SECONDS_BETWEEN_LINES = 5.0


@contextmanager
def tokenizing(*, plain: bool) -> Iterator[write.ProgressCallback]:
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
        words, amount = stage_text(progress), amount_text(progress)
        bar.update(task, description=words, total=total, completed=progress.done_bytes, facts=amount)

    try:
        yield show
    finally:
        if bar.live.is_started:
            bar.stop()


def note_rows(config: RunConfig) -> None:
    """Say how the rows of a run are read, and why. Raises `DataError`."""
    from medsft.core.planning.sets import rows_sentences

    for sentence in rows_sentences(config):
        console.note(sentence)


def note_tasks(plan: RunPlan) -> None:
    """Say which benchmarks a run is asked at each validation, where they come from, and what was decided about them."""
    from medsft.core.text.plan import task_text

    for task in plan.tasks:
        console.note(f"{task_text(task)}.")
        for sentence in task.notes:
            console.note(f"{task.name}: {sentence}")


class _Lines:
    """Prints a line when a stage begins and every few seconds."""

    def __init__(self) -> None:
        self._stage = ""
        self._printed = 0.0

    def __call__(self, progress: write.Progress) -> None:
        now = time.monotonic()
        begins = progress.stage != self._stage
        if begins or now - self._printed >= _SECONDS_BETWEEN_LINES:
            self._stage, self._printed = progress.stage, now
            console.note(stage_line(progress) if begins else progress_line(progress))
