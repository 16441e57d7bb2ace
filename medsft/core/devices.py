"""What this machine can compute on, found without importing torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

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
    """Whether bf16 matrix products are faster than those in fp32."""

    def memory_per_rank(self, ranks: int) -> int:
        """Return the bytes one of `ranks` processes on the node may use; processes on a CPU share its memory."""
        return self.memory_bytes if self.kind == "cuda" else self.memory_bytes // max(1, ranks)


def find_devices() -> Devices:
    """Return the GPUs where there are any (limited to CUDA_VISIBLE_DEVICES), else the CPU."""
    gpus = _visible(_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    if gpus:
        memory = min(gpu.memory_bytes for gpu in gpus)
        return Devices("cuda", len(gpus), memory, gpus[0].name, bf16=all(gpu.capability >= 8.0 for gpu in gpus))
    return Devices("cpu", _usable_cores(), _usable_memory(), _cpu_name(), bf16=cpu_multiplies_bf16())


def assumed_devices(nproc_per_node: int | None) -> Devices:
    """Return what a plan supposes of machines that cannot be asked."""
    return Devices("cuda", nproc_per_node or 8, 80 * 10**9, "a GPU with 80 GB and bf16", bf16=True)


@dataclass(frozen=True, slots=True)
class _Gpu:
    uuid: str
    name: str
    memory_bytes: int
    capability: float


def _gpus() -> list[_Gpu]:
    """Return all GPUs of the machine, asked of nvidia-smi, in its order."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=uuid,name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [gpu for line in answer.splitlines() if (gpu := _read_gpu(line))]


def _read_gpu(line: str) -> _Gpu | None:
    uuid, _, rest = line.partition(",")
    try:
        name, memory, capability = rest.rsplit(",", 2)
        return _Gpu(uuid.strip(), name.strip(), int(float(memory)) << 20, float(capability))
    except ValueError:  # a driver too old to know one of the questions
        return None


def _visible(gpus: list[_Gpu], variable: str | None) -> list[_Gpu]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES names by number or by the start of their UUID, up to the first unknown one."""
    if variable is None:
        return gpus
    chosen = []
    for entry in variable.split(","):
        number = entry.strip()
        matching = [gpu for i, gpu in enumerate(gpus) if number == str(i) or (number and gpu.uuid.startswith(number))]
        if len(matching) != 1:
            break
        chosen += matching
    return chosen


def _usable_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return psutil.cpu_count(logical=False) or 1


def _usable_memory() -> int:
    """Return the machine's memory, or the container's limit where that is smaller."""
    total = psutil.virtual_memory().total
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = _read(path).strip()
        if text.isdigit():
            total = min(total, int(text))
    return total


def _cpu_name() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "CPU"


def cpu_multiplies_bf16() -> bool:
    """Whether bf16 products are faster than fp32 ones: `avx512_bf16` and `amx_bf16` on x86, `bf16` on Arm.

    Intel's from Sapphire Rapids on (they have `avx512_fp16`) do it by AMX. Where a virtual machine hides that, the rest takes
    twice the time of fp32: 168 GFLOP/s against 334 on two cores of an Emerald Rapids.
    """
    words = set(_read("/proc/cpuinfo").split())
    if {"GenuineIntel", "avx512_fp16"} <= words:
        return "amx_bf16" in words
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(words)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
