"""What this machine can compute on, found without importing torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class Devices:
    """The devices of one node."""

    kind: str
    """`cuda` or `cpu`."""
    count: int
    """GPUs, or physical cores for a CPU."""
    memory_bytes: int
    """Of each GPU, or of the whole machine for a CPU."""
    name: str
    bf16: bool
    """Whether bf16 matrix products run in hardware."""

    def memory_per_rank(self, ranks: int) -> int:
        """Return the bytes one of `ranks` processes on the node may use; processes on a CPU share its memory."""
        return self.memory_bytes if self.kind == "cuda" else self.memory_bytes // max(1, ranks)


def find_devices() -> Devices:
    """Return the GPUs where there are any (limited to CUDA_VISIBLE_DEVICES), else the CPU."""
    gpus = _gpus()
    if gpus:
        name, memory, capability = gpus[0]
        return Devices("cuda", len(gpus), memory, name, bf16=capability >= 8.0)
    return Devices("cpu", _usable_cores(), _usable_memory(), _cpu_name(), bf16=_cpu_has_bf16())


def _gpus() -> list[tuple[str, int, float]]:
    """Return (name, bytes, compute capability) of each visible GPU, asked of nvidia-smi."""
    program = shutil.which("nvidia-smi")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if program is None or visible == "":
        return []
    command = [program, "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.rsplit(",", 2) for line in answer.splitlines() if line.count(",") >= 2]
    gpus = [(name.strip(), int(float(memory)) << 20, float(capability)) for name, memory, capability in rows]
    return gpus[: len(visible.split(","))] if visible else gpus


def _usable_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return psutil.cpu_count(logical=False) or 1


def _usable_memory() -> int:
    """Return the machine's memory, or the container's limit where that is smaller."""
    total = psutil.virtual_memory().total
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path) as file:  # noqa: PTH123
                text = file.read().strip()
        except OSError:
            continue
        if text.isdigit():
            total = min(total, int(text))
    return total


def _cpu_info() -> str:
    try:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123
            return file.read()
    except OSError:
        return ""


def _cpu_name() -> str:
    for line in _cpu_info().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "CPU"


def _cpu_has_bf16() -> bool:
    flags = set(_cpu_info().split())
    return bool(flags & {"avx512_bf16", "amx_bf16"})
