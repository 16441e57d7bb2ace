"""The look at the rows of the data page: done in the background, shown in a dialog."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.content import Content
from textual.screen import Screen

from medsft.core.config.run_config import RunConfig
from medsft.core.units import count, counted
from medsft.tui.widgets.dialogs import TextDialog
from medsft.tui.wizard import backend as core
from medsft.tui.wizard.busy import do_slowly

if TYPE_CHECKING:
    from medsft.core.data.check.report import CheckReport

_SHOWN_PLACES = 3


def check_rows(screen: Screen[None], config: RunConfig) -> None:
    """Look at the rows in this worker thread of `screen`, and show what was found."""
    report = do_slowly(screen, lambda progress: core.check(config, progress))
    if report is not None:
        dialog = TextDialog("What a check of the rows found", check_text(report))
        screen.app.call_from_thread(screen.app.push_screen, dialog)


def check_text(report: CheckReport) -> Content:
    """Return counts and places: errors before remarks."""
    parts: list[Content | str] = [f"{counted(report.rows, 'row')}, {count(report.errors)} of them with errors.\n"]
    for flag, rows in report.compared.items():
        parts.append(f"Compared with {counted(rows, 'row')} of {flag}.\n")
    for kind, found in sorted(report.found.items(), key=lambda item: not item[0].error):
        mark, color = ("✖", "$error") if kind.error else ("!", "$warning")
        parts.append(Content.styled(f"\n{mark} {counted(len(found.rows), 'row')} {kind.meaning(len(found.rows))}\n", color))
        for row, like in found.places(report.places, _SHOWN_PLACES):
            parts.append(f"    {row} (like {like})\n" if like else f"    {row}\n")
    if not report.found:
        parts.append(Content.styled("✔ Nothing was found.\n", "$success"))
    if report.languages:
        told = ", ".join(f"{code or 'not sure'} {count(rows)}" for code, rows in report.languages.items())
        parts.append(f"\nLanguages: {told}\n")
    parts += [Content.styled(f"\n! {sentence}\n", "$warning") for sentence in report.not_checked]
    parts.append("\n`medsft check` shows the same, and with --write_clean DIR it writes the rows without faults.")
    return Content.assemble(*parts)
