"""What both the monitor and the list of runs can do with a run: resume and export. Slow work; call it in a worker thread."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from textual.screen import Screen

from medsft.core.run.rundir import RunDir
from medsft.errors import MedsftError


def resume_run(run: RunDir, on_status: Callable[[str], None]) -> str:
    """Resume a run and return what to tell; `on_status` gets what is waited for before. Raises `MedsftError`."""
    from medsft.core.workflow import resume, start  # these imports take longer than the first paint should

    plan = resume(run)
    if plan.config.nodes > 1:
        on_status(f"Type on each other node, with its rank: medsft resume {run.path} --rank N")
    start(plan, on_status=on_status)
    return f"Resumed with {plan.layout}."


def export(run: RunDir) -> str:
    """Start the export of the finished model, or of the latest checkpoint into a folder of its own, and return what to tell.

    The latter carries the iteration: the plain name is that of the finished model, and tells a later start that there is
    nothing left to train. Raises `MedsftError`.
    """
    from medsft.core.files import is_taken
    from medsft.core.run.best import end_of_training
    from medsft.core.run.exports import finished_models
    from medsft.core.run.launch import load_plan, start_export

    plan = load_plan(run)
    iteration = run.latest_checkpoint()
    if iteration is None:
        raise MedsftError("There is no checkpoint to export.")
    to = Path(plan.export_dir)
    end = end_of_training(run, plan)
    if end is None:
        to = to.with_name(f"{to.name}-iter{iteration:07d}")
    else:
        iteration = finished_models(run, plan, end).folders[to]
    if is_taken(to):
        return f"The model of iteration {iteration:,} is there already: {to}"
    start_export(run, to, iteration)
    return f"Exporting iteration {iteration:,} to {to}. {run.export_log} says when it is done."


def ask(screen: Screen[Any], run: RunDir, what: str) -> bool:
    """Ask a run to `stop` or to `save`, and return whether that could be done; where not, tell why."""
    try:
        run.request(what)
    except (MedsftError, OSError) as error:
        _refuse(screen, error)
        return False
    return True


def _refuse(screen: Screen[Any], error: Exception) -> None:
    screen.notify(str(error), title="Not done", severity="error", timeout=15, markup=False)


def tell(screen: Screen[Any], action: Callable[[], str]) -> None:
    """Do something slow in a worker thread of `screen`, and tell there how it went."""
    try:
        notify_from_thread(screen, action())
    except (MedsftError, OSError) as error:
        screen.app.call_from_thread(_refuse, screen, error)


def notify_from_thread(screen: Screen[Any], text: str) -> None:
    """Show a line on `screen`, from a worker thread."""
    screen.app.call_from_thread(screen.notify, text, markup=False)
