"""What computes a run: our compiled kernels or torch's, on which device. Others give other last digits: a resume checks it.

Each checkpoint's manifest records it under `arithmetic`; those of before there was such a record are resumed without a check.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from medsft.core.engine.kernels import cpu
from medsft.core.engine.parallel.mesh import Mesh
from medsft.errors import LaunchError

_KEY_WORDS = {
    "kernels": "kernels of medsft",
    "torch": "torch",
    "device": "device",
}


def arithmetic() -> dict[str, str]:
    """Return what this rank computes with: the kernels' identity (empty: torch's are used), torch's version, the device."""
    if torch.cuda.is_available():
        return {"kernels": "", "torch": torch.__version__, "device": torch.cuda.get_device_name()}
    return {"kernels": cpu.compilation().identity[:16], "torch": torch.__version__, "device": "cpu"}


def check_arithmetic(mesh: Mesh, before: Mapping[str, Any] | None) -> list[str]:
    """Return what a person should know of what the ranks compute with now, and did when `before` was recorded.

    Every rank must call it. Raises `LaunchError` on all of them when only a disk without room keeps a resumed run from the
    kernels that it was trained with: with room it goes on bit for bit.
    """
    disk = "" if torch.cuda.is_available() else cpu.compilation().disk
    found: list[Any] = mesh.gather((arithmetic(), disk))
    for rank, (_, problem) in enumerate(found):
        if problem and before and before.get("kernels"):
            raise LaunchError(
                f"The kernels that this run was trained with cannot be compiled on rank {rank}. {problem}",
                hint="Make room there, or set TMPDIR to a folder with room, and resume: torch's own kernels give other digits.",
            )
    lines = [
        f"Rank {rank} computes with torch's own kernels, slower and with other last digits: ours cannot be compiled. {problem}"
        for rank, (_, problem) in enumerate(found)
        if problem
    ]
    now = found[0][0]
    others = [rank for rank, (one, _) in enumerate(found) if one != now]
    if others:
        lines.append(f"Rank 0 and ranks {others} do not compute with the same kernels, devices or version of torch.")
    if before:
        changes = [
            f"{words}: {before.get(key) or 'none'} before, {now[key] or 'none'} now"
            for key, words in _KEY_WORDS.items()
            if before.get(key) != now[key]
        ]
        if changes:
            lines.append(
                "This run goes on with other arithmetic, so it is no longer the uninterrupted run bit for bit "
                f"({'; '.join(changes)})."
            )
    return lines
