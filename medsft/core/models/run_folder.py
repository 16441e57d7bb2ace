"""What a run of ours shows to those who take it as a base model: its plan, its checkpoints, and whether one is complete.

RUN/plan.json                  a folder with a plan is a run
RUN/iter_0000800/              a checkpoint; it exists when its name does
RUN/iter_0000800/manifest.json what it is, with the size and hash of every file; it is complete when they are there

The other files of a run are `core.run.rundir`'s.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from medsft.core.files import sizes_differ, unsealed

PLAN_NAME = "plan.json"
MANIFEST_NAME = "manifest.json"
"""In a checkpoint: what it is, with the size and hash of every file."""
UNREADABLE_MANIFEST = (OSError, ValueError, KeyError, TypeError, AttributeError)
"""What reading a manifest raises that is missing, damaged, or something else; `why_unreadable` says it in words."""
_ITERATION = re.compile(r"iter_(\d{7,})")


def is_run(folder: Path) -> bool:
    """Tell whether a folder is a run."""
    return (folder / PLAN_NAME).is_file()


def checkpoint_path(run: Path, iteration: int) -> Path:
    """Return the folder of one checkpoint of a run."""
    return run / f"iter_{iteration:07d}"


def iterations_in(run: Path) -> list[int]:
    """Return the iterations of the checkpoints in a folder, ascending; none where there is no folder."""
    if not run.is_dir():
        return []
    named = {entry: match for entry in run.iterdir() if (match := _ITERATION.fullmatch(entry.name))}
    return sorted(int(match[1]) for entry, match in named.items() if entry.is_dir())


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint. Raises `OSError`, or `ValueError` when it is damaged or another checkpoint's."""
    manifest = unsealed((checkpoint / MANIFEST_NAME).read_bytes())
    named = _ITERATION.fullmatch(checkpoint.name)
    if named and manifest.get("iteration", int(named[1])) != int(named[1]):
        raise ValueError(f"it is of iteration {manifest['iteration']}")
    return manifest


def incomplete(checkpoint: Path) -> str | None:
    """Return what is wrong with the names and sizes of a checkpoint's files, or None. Reads its manifest alone."""
    try:
        return sizes_differ(checkpoint, read_manifest(checkpoint)["files"])
    except UNREADABLE_MANIFEST as error:
        return why_unreadable(error)


def why_unreadable(error: Exception) -> str:
    """Return in a few words why a manifest cannot be used."""
    if isinstance(error, FileNotFoundError):
        return f"{MANIFEST_NAME} is missing"
    return f"{MANIFEST_NAME} cannot be read: {getattr(error, 'strerror', None) or error}"
