"""The runs of a folder as lists show them. A run that cannot be read is named with the reason, and hides no other.

runs/NAME  --why_broken--> a reason, or None  --look--> Listed
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from medsft.core.run.rundir import REHEARSAL_SUFFIX, RunDir
from medsft.core.run.view import RunView
from medsft.errors import ConfigError, MedsftError, Problem

BROKEN = "broken"
"""State of a run that cannot be read, beside those of `rundir.STATES`."""
_RUN_NAME = re.compile(r".+-tp\d+-pp\d+-.+")
_UNREADABLE = (OSError, MedsftError, ValueError, TypeError, KeyError, AttributeError)
"""What reading a damaged run can end in: its files may hold anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One run of a list."""

    run: RunDir
    view: RunView
    state: str
    """One of `rundir.STATES`, or `BROKEN`."""
    problem: str
    """Why it is broken, else nothing."""
    checkpoints: tuple[int, ...]
    """All that have a name on the disk, whole or not."""
    updated: float
    """Unix time of the latest event, else of the plan; 0 where neither can be known."""


def list_runs(folder: Path) -> list[RunDir]:
    """Return what is a run under a folder, or has the name of one, the latest first.

    Raises `ConfigError` for a folder that cannot be read or is none; one that does not exist has no runs.
    """
    try:
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError([Problem("--save_checkpoint_dir", f"{folder} cannot be read: {error.strerror or error}")]) from None
    runs = [RunDir(entry) for entry in entries if _is_meant_as_run(entry)]
    return sorted(runs, key=lambda run: (-_changed(run.plan_path), run.path.name))


def _is_meant_as_run(entry: Path) -> bool:
    named = _RUN_NAME.fullmatch(entry.name) is not None and not entry.name.endswith(REHEARSAL_SUFFIX)
    return named or _changed(RunDir(entry).plan_path) > 0


def _changed(path: Path) -> float:
    """Return when a file was changed, a link itself where it leads nowhere; 0 where there is none or it cannot be told."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def why_broken(run: RunDir) -> str | None:
    """Return why a run cannot be used, None where folder and plan can be read."""
    return why_no_folder(run) or _why_no_plan(run)


def why_no_folder(run: RunDir) -> str | None:
    """Return why what has the name of a run is no folder that can be read, or None."""
    try:
        if not stat.S_ISDIR(run.path.stat().st_mode):
            return "it is a file, not a folder"
        next(run.path.iterdir(), None)
    except FileNotFoundError:
        return "its link leads to nothing" if run.path.is_symlink() else "it is gone"
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"
    return None


def _why_no_plan(run: RunDir) -> str | None:
    try:
        run.read_plan()
    except MedsftError as error:
        return _shortened(run, error)
    return None


def look(run: RunDir, read: Callable[[], RunView] | None = None) -> Listed:
    """Return a run as it is now. `read` gives its view, where somebody keeps one; nothing that is in its files raises."""
    problem = why_broken(run)
    view, state, saved = RunView(), BROKEN, tuple[int, ...]()
    if problem is None:
        try:
            view = (read or run.view)()
            state, saved = run.state(view), tuple(run.checkpoints())
            problem = _why_no_events(run, view)
        except _UNREADABLE as error:
            problem = _reason(run, error)
    if problem:
        state = BROKEN
    updated = view.updated or _changed(run.plan_path) or _changed(run.path)
    return Listed(run=run, view=view, state=state, problem=problem or "", checkpoints=saved, updated=updated)


def _why_no_events(run: RunDir, view: RunView) -> str | None:
    """Return that there is a log, but no event in it."""
    if view.updated or not run.events_path.exists():
        return None
    with run.events_path.open("rb") as file:
        return f"no event can be read in {run.events_path.name}" if b"\n" in file.read(1 << 16) else None


def _reason(run: RunDir, error: Exception) -> str:
    """Return in a few words what cannot be read, never what is in it."""
    if isinstance(error, OSError):
        where = Path(str(error.filename)).name if error.filename else "a file"
        return f"{where}: cannot be read: {error.strerror or type(error).__name__}"
    return _shortened(run, error) if isinstance(error, MedsftError) else f"a file in it is damaged ({type(error).__name__})"


def _shortened(run: RunDir, error: MedsftError) -> str:
    """Return a message without the run's folder, which a list names anyhow."""
    return error.message.replace(f"{run.path}/", "").removeprefix(f"{run.path}: ").rstrip(".")
