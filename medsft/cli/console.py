"""Where output goes: results to standard output, everything else to standard error.

Names, paths, messages and records may come from elsewhere: what they hold never steers the terminal, and is never markup.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from medsft.core.printable import one_line, printable

if TYPE_CHECKING:
    from rich.console import Console

_UNWRAPPED = 10_000


def result_console() -> Console:
    """Return a console on standard output; when that is no terminal, without colors, and nothing is wrapped."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _UNWRAPPED)


def note_console() -> Console:
    """Return a console on standard error."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """Print a result, of one or several lines."""
    print(printable(text), flush=True)


def write(text: str) -> None:
    """Print a part of a result, of which more comes."""
    print(printable(text), end="", flush=True)


def note(text: str, *, end: str = "\n") -> None:
    """Print a diagnostic line."""
    print(printable(text), end=end, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """Print one JSON document as the result."""
    print_json_text(json.dumps(value, indent=1, default=str) + "\n")


def print_json_text(text: str) -> None:
    """Print JSON that was made elsewhere, with its last newline. Only DEL is escaped here: JSON itself escapes the rest."""
    print(text.replace("\x7f", "\\u007f"), end="", flush=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[int] = ()) -> None:
    """Print a table as the result; `numbers` are the positions of right-aligned columns."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", show_header=any(columns))
    for position, column in enumerate(columns):
        justify: Literal["right", "left"] = "right" if position in numbers else "left"
        table.add_column(Text(one_line(column)), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))  # an end of line in a name would begin a row
    result_console().print(table)


def interactive() -> bool:
    """Tell whether a person is at both ends: may be asked, and sees a live display."""
    return sys.stdin.isatty() and sys.stdout.isatty() and not dumb_terminal()


def shows_screens() -> bool:
    """Tell whether a live view can be shown: in a terminal, or in the browser that `medsft serve` talks to."""
    return interactive() or "TEXTUAL_DRIVER" in os.environ


def dumb_terminal() -> bool:
    """Tell whether the terminal cannot move its cursor."""
    return os.environ.get("TERM", "") in ("", "dumb")


def wants_lines(plain: bool) -> bool:
    """Tell whether progress is printed as lines: asked for, no terminal, or one that cannot redraw."""
    return plain or not sys.stderr.isatty() or dumb_terminal()
