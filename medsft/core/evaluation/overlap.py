"""Whether the questions of a task are among the rows that a model was trained on, as the manifest of its set names them."""

from __future__ import annotations

from pathlib import Path

from medsft.core.data.dataset.manifest import Manifest, hash_inputs, read_manifest
from medsft.core.data.dataset.write import ProgressCallback
from medsft.core.evaluation.benchmark import Task
from medsft.core.evaluation.measure import NO_OVERLAP, Overlap
from medsft.core.planning.plan import RunPlan
from medsft.core.units import counted
from medsft.errors import MedsftError


def overlap_with_training(task: Task, plan: RunPlan | None, *, progress: ProgressCallback | None = None) -> Overlap:
    """Return which questions are among the rows of a run's training set; why nobody can tell, where that is so."""
    from medsft.core.data.check.questions import NGRAM, among_rows  # the patterns of the screen take a tenth of a second

    if plan is None:
        return NO_OVERLAP
    folder = Path(plan.train.folder)
    try:
        manifest = read_manifest(folder)
        files, reason = _files(folder, manifest)
        if reason or manifest is None or manifest.recipe is None:
            return Overlap(None, f"Overlap with the training set: {reason}.")
        texts = [question.text() for question in task.questions]
        found = among_rows(texts, files, manifest.recipe.rows, progress=progress)
    except (MedsftError, OSError) as error:
        reason = error.message if isinstance(error, MedsftError) else f"{error.strerror or error}"
        return Overlap(None, f"Overlap with the training set cannot be looked for: {reason}.")
    rows = counted(manifest.documents, "document")
    return Overlap(tuple(found.tolist()), f"Compared with the {rows} of {folder.name} by runs of {NGRAM} words.")


def _files(folder: Path, manifest: Manifest | None) -> tuple[list[Path], str]:
    """Return the files of a set as they were read for it, and why they cannot be compared with, or ""."""
    if manifest is None or manifest.recipe is None or not manifest.recipe.inputs:
        return [], f"{folder} does not say what it was made from"
    files = [Path(file.path) for file in manifest.recipe.inputs]
    for path, was in zip(files, manifest.recipe.inputs, strict=True):
        if not path.is_file():
            return [], f"{path} is not there any more"
        if path.stat().st_size != was.bytes or hash_inputs([path])[0].sha256 != was.sha256:
            return [], f"{path} has changed since it was tokenized"
    return files, ""
