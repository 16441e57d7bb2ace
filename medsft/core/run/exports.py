"""The finished model of a run: whether it is there as it was written, and how a run is finished by exporting it.

A model is finished when the manifest in its folder says so, not because the folder is there.
"""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from medsft.core.config.options import check_ranges
from medsft.core.config.run_config import RunConfig
from medsft.core.files import check_is_new, is_taken
from medsft.core.planning.plan import RunPlan
from medsft.core.run.best import best_checkpoint
from medsft.core.run.events import EventWriter
from medsft.core.run.integrity import EXPORT_MANIFEST, damage, export_damage, read_export
from medsft.core.run.launch import EngineError, load_plan, run_engine
from medsft.core.run.rundir import RunDir
from medsft.errors import ConfigError, MedsftError, MismatchError, Problem

LAST_SUFFIX = "-last"
"""Follows the name of the finished model's folder for the model of the last checkpoint, where both are exported."""
_ELSEWHERE = "Move it away, or give the run a name of its own: --id NAME"


@dataclass(frozen=True, slots=True)
class Exported:
    """What lies where the finished model of a plan belongs."""

    there: bool
    """Whether there is a model that medsft wrote, damaged or not."""
    of_this_plan: bool
    """False where the model is of another plan, or does not say of which."""
    damage: str | None
    """What is wrong with its files."""


def check_request(run: RunDir, to: Path, iteration: int | None, form: str | None = None) -> None:
    """Raise `MismatchError` when an export cannot begin: `to` is taken, or the run has no such checkpoint.

    Raises `ConfigError` when a `form` (of `--export`) is asked for that there is not, or of a run without an adapter.
    """
    check_is_new(to)
    if form is not None:
        _check_form(run, form)
    if not run.checkpoints() or (iteration is not None and iteration not in run.checkpoints()):
        wanted = "" if iteration is None else f" of iteration {iteration:,}"
        raise MismatchError(f"{run.path}: no checkpoint{wanted} to export.", hint=checkpoints_there(run))


def _check_form(run: RunDir, form: str) -> None:
    if problems := check_ranges(replace(RunConfig(adapter="lora"), export=form)):
        raise ConfigError(problems)
    if load_plan(run).config.adapter == "none":
        text = f"{run.path} trained all weights of its model: there is no adapter to choose"
        raise ConfigError([Problem("--export", text, "Leave it away.")])


def checkpoints_there(run: RunDir) -> str:
    """Return a sentence with the iterations of the checkpoints that a run has."""
    return f"Checkpoints it has: {', '.join(f'{saved:,}' for saved in run.checkpoints()) or 'none'}."


def look_at_export(plan: RunPlan, run: RunDir, folder: Path | None = None) -> Exported:
    """Return what lies where the model of `plan` belongs, or at `folder`. Reads all of its files.

    Raises `MismatchError` when something lies there that is no model of medsft's.
    """
    folder = folder or Path(plan.export_dir)
    if not is_taken(folder):
        return Exported(there=False, of_this_plan=False, damage=None)
    if not (folder / EXPORT_MANIFEST).exists() and not _was_exported(run, folder):
        raise MismatchError(f"{folder} is in the way: it is no model that medsft has exported.", hint=_ELSEWHERE)
    return Exported(there=True, of_this_plan=_identity(folder) == plan.identity, damage=export_damage(folder))


def _was_exported(run: RunDir, folder: Path) -> bool:
    return folder.is_dir() and run.exists() and Path(run.view().export).name == folder.name


def _identity(folder: Path) -> str | None:
    """Return the identity of the plan that a model was trained by, None where it does not say."""
    try:
        return RunPlan.from_json(read_export(folder)["plan"], where=str(folder)).identity
    except (OSError, ValueError, KeyError, TypeError, AttributeError, MedsftError):
        return None


@dataclass(frozen=True, slots=True)
class FinishedModels:
    """The models that a run leaves behind."""

    folders: dict[Path, int]
    """The folder of each, with the iteration of its checkpoint. The first is at `RunPlan.export_dir`."""
    damaged_best: int | None = None
    """The iteration of the best checkpoint, where it is damaged and the last one takes its place."""


def finished_models(run: RunDir, plan: RunPlan, end: int) -> FinishedModels:
    """Return the models of a run that was trained up to iteration `end`.

    The first is that of the best checkpoint where one is kept and not damaged, unless `--export_checkpoint` asks for the last.
    Reads all files of the best one.
    """
    folder, asked = Path(plan.export_dir), plan.config.export_checkpoint
    best = best_checkpoint(run, plan) if asked != "last" else None
    if best is None or best == end:
        return FinishedModels({folder: end})
    if damage(run.checkpoint_path(best)) is not None:
        return FinishedModels({folder: end}, damaged_best=best)
    last = {folder.with_name(f"{folder.name}{LAST_SUFFIX}"): end} if asked == "both" else {}
    return FinishedModels({folder: best, **last})


def finish(run: RunDir, plan: RunPlan, end: int) -> None:
    """Export the models of a run that is trained up to iteration `end`, unless they are there, and log that it is finished.

    A damaged model makes room: it is kept under another name. Raises the error of the export, `MismatchError` when something
    else is in the way.
    """
    models = finished_models(run, plan, end)
    events = EventWriter(run.events_path)
    try:
        if models.damaged_best is not None:
            name = run.checkpoint_path(models.damaged_best).name
            events.write("warning", message=f"The best checkpoint, {name}, is damaged: the last one is exported.")
        for folder, iteration in models.folders.items():
            if not _export(run, plan, folder, iteration, events):
                events.write("stopped", iteration=end)
                return
        exported = models.folders[Path(plan.export_dir)]
        more = {"exported_iteration": exported} if exported != end else {}
        events.write("finished", iteration=end, export=plan.export_dir, **more)
    finally:
        events.close()
    run.set_latest_checkpoint(end)  # where a kill or a full disk came in between
    run.write_status("Training done")


def _export(run: RunDir, plan: RunPlan, folder: Path, iteration: int, events: EventWriter) -> bool:
    """Export a checkpoint unless its model is there; False where a stop was asked for meanwhile. Raises as `finish`."""
    found = look_at_export(plan, run, folder)
    if found.there and found.damage:
        aside = _set_aside(folder)
        events.write("warning", message=f"{folder} was damaged: {found.damage}. It is kept as {aside.name}.")
    elif found.there and not found.of_this_plan:
        raise MismatchError(f"{folder} holds the model of another plan.", hint=_ELSEWHERE)
    elif found.there:
        return True
    events.write("phase", name="exporting")
    try:
        taken = json.loads(run_engine("export", [str(run.path), "--to", str(folder), "--iteration", str(iteration)]))
    except EngineError as error:
        if not (run.requested("stop") and error.returncode == -signal.SIGTERM):  # Slurm's SIGTERM reaches the export, too
            raise
        return False
    if taken["rounding_matters"]:
        events.write("warning", message=taken["rounding"])
    return True


def _set_aside(folder: Path) -> Path:
    """Rename a folder to the first free one of NAME-damaged, NAME-damaged2, ... and return its new path."""
    names = (f"{folder.name}-damaged{number if number > 1 else ''}" for number in count(1))
    free = next(path for path in map(folder.with_name, names) if not path.exists())
    return folder.rename(free)
