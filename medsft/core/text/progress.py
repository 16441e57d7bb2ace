"""How far tokenizing is, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medsft.core.units import byte_size, count, counted, duration

if TYPE_CHECKING:
    from medsft.core.data.dataset.write import Progress

_STAGES = {
    "wait": "waiting for another process",
    "hash": "reading the files",
    "check": "checking rows",
    "tokenize": "tokenizing",
}


def stage_text(progress: Progress) -> str:
    """Return what is being done."""
    return _STAGES[progress.stage]


def amount_text(progress: Progress) -> str:
    """Return how much is done, how fast, and how long the rest will take; empty where nothing is known yet."""
    parts = []
    if progress.documents:
        parts.append(f"{counted(progress.documents, 'document')}, {count(progress.documents_per_second)}/s")
    if progress.seconds_left is not None:
        parts.append(f"{duration(progress.seconds_left)} left")
    return ", ".join(parts)


def stage_line(progress: Progress) -> str:
    """Return what begins, and how much of it there is, as ``checking rows, 2.3 MiB ...``."""
    size = f", {byte_size(progress.total_bytes)}" if progress.total_bytes else ""
    return f"{stage_text(progress)}{size} ..."


def progress_line(progress: Progress) -> str:
    """Return stage, share and amount in one line."""
    share = (
        f" {progress.done_bytes / progress.total_bytes:.0%} of {byte_size(progress.total_bytes)}"
        if progress.total_bytes
        else ""
    )
    amount = amount_text(progress)
    return f"{stage_text(progress)}{share}{', ' if amount else ''}{amount}"
