"""What a run computes with: our compiled kernels or torch's, torch's version, the device. Another gives other last digits.

Each checkpoint's manifest records it under `arithmetic`, and a resume compares. Checkpoints older than this record are resumed
without a comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from medsft.core.engine.kernels import cpu, cuda
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
        return {"kernels": cuda.identity(_gpu()), "torch": torch.__version__, "device": torch.cuda.get_device_name()}
    return {"kernels": cpu.compilation().identity[:16], "torch": torch.__version__, "device": "cpu"}


def _gpu() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def check_arithmetic(mesh: Mesh, before: Mapping[str, Any] | None) -> list[str]:
    """Return a warning for each way in which the ranks compute differently from each other, or from what `before` records.

    Every rank must call it. Raises `LaunchError` on all of them when only a full disk keeps a resumed run from its kernels:
    with room on the disk it would continue bit for bit.
    """
    on_gpu = torch.cuda.is_available()
    disk, library = ("", cuda.problem(_gpu())) if on_gpu else (cpu.compilation().disk, "")
    found: list[Any] = mesh.gather((arithmetic(), disk, library))
    for rank, (_, problem, _) in enumerate(found):
        if problem and before and before.get("kernels"):
            raise LaunchError(
                f"The kernels that this run was trained with cannot be compiled on rank {rank}. {problem}",
                hint="Make room there, or set TMPDIR to a folder with room, and resume: torch's own kernels give other digits.",
            )
    lines = [
        f"Rank {rank} computes with torch's own kernels, slower and with other last digits: ours cannot be compiled. {problem}"
        for rank, (_, problem, _) in enumerate(found)
        if problem
    ]
    lines += [
        f"Rank {rank} computes SwiGLU and rotation more slowly, by torch's operations: liger-kernel fails here ({problem})."
        for rank, (_, _, problem) in enumerate(found)
        if problem
    ]
    now = found[0][0]
    others = [rank for rank, (one, *_) in enumerate(found) if one != now]
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
