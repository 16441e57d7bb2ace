"""Text for people: medians with their spread, as Markdown tables that can be pasted into a page."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

Row = dict[str, str]


def say(text: str) -> None:
    """Print a line at once, although the output may go to a file."""
    print(text, flush=True)


def spread(values: Sequence[float] | None, form: str) -> str:
    """Return `median (lowest to highest)`, the median alone for a single value, or nothing."""
    if not values:
        return ""
    middle = format(statistics.median(values), form)
    return middle if len(values) == 1 else f"{middle} ({min(values):{form}} to {max(values):{form}})"


def table_lines(rows: Sequence[Row]) -> list[str]:
    """Return rows that have the same columns as lines of a Markdown table; nothing without rows."""
    if not rows:
        return []
    columns = list(rows[0])
    widths = [max(len(name), *(len(row[name]) for row in rows)) for name in columns]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return [_line(columns, widths), rule, *(_line([row[name] for name in columns], widths) for row in rows)]


def print_table(title: str, rows: Sequence[Row]) -> None:
    """Print rows that have the same columns."""
    if rows:
        say("\n".join(["", title, "", *table_lines(rows), ""]))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"
