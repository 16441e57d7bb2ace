"""The GPUs that a process started here would see: asked of nvidia-smi, and where that cannot tell, of torch in its own process.

nvidia-smi --query-gpu --> GPUs --CUDA_VISIBLE_DEVICES--> those that count
nvidia-smi -L          --> slices (MIG) of a GPU, of which CUDA shows a process one
torch                  --> where there is no nvidia-smi (containers, ROCm) or no figure of memory (GB10, some containers)
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

_QUERY = "--query-gpu=uuid,name,memory.total,compute_cap,mig.mode.current"
_NVIDIA_SMI_SECONDS = 20
_TORCH_SECONDS = 180
"""Importing torch from a cold network file system takes a minute."""
_BF16_CAPABILITY = 8.0
"""Compute capability of Ampere: the first whose matrix units multiply bf16, and the first that FlashAttention takes."""
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
_DEVICE_FILES = ("nvidia[0-9]*", "nvhost-gpu", "dxg", "kfd")
"""In /dev: NVIDIA's GPUs, those of Jetson and of Windows' Linux, and AMD's."""
_SLICE = re.compile(r"MIG (?P<profile>\S*?(?P<gigabytes>\d+)gb\S*)\s+Device\s+\d+:\s+\(UUID:\s*(?P<uuid>MIG-[^)\s]+)\)")
"""A line of `nvidia-smi -L` below that of the GPU, as `MIG 3g.20gb     Device  0: (UUID: MIG-7089d0f3-...)`."""
_WHOLE = re.compile(r"GPU \d+: .*\(UUID:\s*(?P<uuid>GPU-[^)\s]+)\)")


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU, or the slice of one that a process sees."""

    name: str
    memory_bytes: int
    capability: float
    """Compute capability, as 9.0 of an H100; on ROCm what torch says in its place."""
    bf16: bool
    """Whether its matrix units multiply bf16."""


def visible_gpus() -> list[Gpu]:
    """Return the GPUs that a process started in this environment sees, in CUDA's order; none where there are none."""
    variable = os.environ.get("CUDA_VISIBLE_DEVICES")
    if variable is not None and _first(variable) in ("", "-1"):
        return []
    found = _asked_of_nvidia_smi(variable)
    if found is not None:
        return found
    return list(_asked_of_torch(_environment())) if _is_there_a_sign() else []


def _first(variable: str) -> str:
    return variable.split(",")[0].strip()


def _environment() -> tuple[str | None, ...]:
    return tuple(os.environ.get(name) for name in _VISIBLE)


def _is_there_a_sign() -> bool:
    """Tell whether it is worth asking torch, which takes seconds."""
    return any(_environment()) or any(any(Path("/dev").glob(pattern)) for pattern in _DEVICE_FILES)


@dataclass(frozen=True, slots=True)
class _Known:
    """A line of nvidia-smi; None for what it does not tell."""

    uuid: str
    name: str
    memory_bytes: int | None
    capability: float | None
    divided: bool
    """Whether it is in MIG mode: CUDA then shows its slices and never the whole."""
    slices: tuple[_Known, ...] = ()


def _asked_of_nvidia_smi(variable: str | None) -> list[Gpu] | None:
    """Return the visible GPUs, None where nvidia-smi is missing, fails, or does not tell what has to be known of one."""
    answer = _nvidia_smi(_QUERY, "--format=csv,noheader,nounits")
    known = [gpu for line in (answer or "").splitlines() if (gpu := _read_gpu(line))]
    if not known:
        return None
    if any(gpu.divided for gpu in known):
        slices = _read_slices(_nvidia_smi("-L") or "", known)
        known = [replace(gpu, slices=tuple(slices.get(gpu.uuid, ()))) for gpu in known]
    chosen = _visible(known, variable)
    gpus = [
        Gpu(gpu.name, gpu.memory_bytes, gpu.capability, gpu.capability >= _BF16_CAPABILITY)
        for gpu in chosen
        if gpu.memory_bytes is not None and gpu.capability is not None
    ]
    return gpus if len(gpus) == len(chosen) else None


def _nvidia_smi(*arguments: str) -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=_NVIDIA_SMI_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _read_gpu(line: str) -> _Known | None:
    """Read a line of `_QUERY`; None for one that is something else, as a message of a driver that does not run."""
    uuid, _, rest = line.partition(",")
    columns = rest.rsplit(",", 3)
    if len(columns) != 4:
        return None
    name, memory, capability, mode = (column.strip() for column in columns)
    mebibytes = _number(memory)
    size = None if mebibytes is None else int(mebibytes) << 20
    return _Known(uuid.strip(), name, size, _number(capability), divided=mode == "Enabled")


def _number(text: str) -> float | None:
    """Return a figure of nvidia-smi; None for `[N/A]`, `[Not Supported]`, `[Insufficient Permissions]`."""
    try:
        return float(text)
    except ValueError:
        return None


def _read_slices(listed: str, known: Sequence[_Known]) -> dict[str, list[_Known]]:
    """Return the slices of each GPU by its UUID.

    Their memory is taken from the name of their profile, as 20e9 bytes of `3g.20gb`: what CUDA shows is up to 5 % more.
    """
    by_uuid = {gpu.uuid: gpu for gpu in known}
    slices: dict[str, list[_Known]] = {}
    whole: _Known | None = None
    for line in listed.splitlines():
        if found := _WHOLE.search(line):
            whole = by_uuid.get(found["uuid"])
        elif whole is not None and (found := _SLICE.search(line)):
            name = f"{whole.name} MIG {found['profile']}"
            one = _Known(found["uuid"], name, int(found["gigabytes"]) * 10**9, whole.capability, divided=False)
            slices.setdefault(whole.uuid, []).append(one)
    return slices


def _visible(known: Sequence[_Known], variable: str | None) -> list[_Known]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES names by number or by the start of their UUID, up to the first unknown one.

    Where slices are visible CUDA shows a process the first of them alone, and no whole GPU beside it
    (https://docs.nvidia.com/datacenter/tesla/mig-user-guide/, "CUDA device enumeration").
    """
    if variable is None:
        chosen = list(known)
    else:
        chosen = []
        for entry in variable.split(","):
            matching = _matching(known, entry.strip())
            if len(matching) != 1:
                break
            chosen += matching
    shown = [part for gpu in chosen for part in (gpu.slices if gpu.divided else (gpu,))]
    divided = {part.uuid for gpu in known for part in gpu.slices}
    first = next((part for part in shown if part.uuid in divided), None)
    return shown if first is None else [first]


def _matching(known: Sequence[_Known], entry: str) -> list[_Known]:
    parts = [part for gpu in known for part in (gpu, *gpu.slices)]
    by_number = [gpu for number, gpu in enumerate(known) if entry == str(number)]
    return by_number or [part for part in parts if entry and part.uuid.startswith(entry)]


@cache
def _asked_of_torch(environment: tuple[str | None, ...]) -> tuple[Gpu, ...]:
    """Return what torch sees with these variables, asked in a process of its own; nothing where torch does not start."""
    command = [sys.executable, "-m", "medsft.core.engine.commands.gpus"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TORCH_SECONDS, check=True)
        return tuple(_from_torch(raw) for raw in json.loads(done.stdout))
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError):
        return ()


def _from_torch(raw: Mapping[str, object]) -> Gpu:
    return Gpu(
        str(raw["name"]),
        int(str(raw["memory_bytes"])),
        float(str(raw["capability"])),
        bool(raw["bf16"]),
    )
