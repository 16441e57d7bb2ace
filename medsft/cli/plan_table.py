"""The rows of a plan and of a rehearsal as tables on standard output."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from medsft.cli import console
from medsft.core.text.plan import Row, plan_rows, rehearsal_rows

if TYPE_CHECKING:
    from medsft.core.planning.plan import RunPlan
    from medsft.core.rehearsal import Rehearsal


def print_plan(plan: RunPlan) -> None:
    """Print the table on standard output, with what a rehearsal of this plan found, and the warnings on standard error."""
    from medsft.core.forecast import forecast
    from medsft.core.planning.folders import free_bytes
    from medsft.core.rehearsal import read_rehearsal

    rehearsal = read_rehearsal(plan)
    rows = plan_rows(plan, forecast(plan), free_bytes(Path(plan.run_dir)))
    _print([*rows, *(rehearsal_rows(rehearsal) if rehearsal else [])])
    for warning in plan.warnings:
        console.note(f"warning: {warning}")


def print_rehearsal(rehearsal: Rehearsal) -> None:
    """Print what was measured, on standard output."""
    _print(rehearsal_rows(rehearsal))


def _print(rows: Iterable[Row]) -> None:
    console.print_table(("", ""), [(row.label, row.text) for row in rows])
