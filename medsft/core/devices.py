"""What this machine can compute on, found without importing torch."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil

from medsft.core.gpus import visible_gpus
from medsft.core.host_memory import text_of, usable_memory


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
    capability: float | None = None
    """The lowest compute capability of the GPUs, where it is known."""
    torch_for_gpus: bool = False
    """Whether the torch that is installed has libraries for GPUs, which a process on a CPU has in its memory, too."""

    def memory_per_rank(self, ranks: int) -> int:
        """Return the bytes one of `ranks` processes on the node may use; processes on a CPU share its memory."""
        return self.memory_bytes if self.kind == "cuda" else self.memory_bytes // max(1, ranks)


def find_devices() -> Devices:
    """Return the GPUs that a process started here would see, where there are any, else the CPU."""
    if gpus := visible_gpus():
        memory, capability = min(gpu.memory_bytes for gpu in gpus), min(gpu.capability for gpu in gpus)
        return Devices("cuda", len(gpus), memory, gpus[0].name, bf16=all(gpu.bf16 for gpu in gpus), capability=capability)
    bf16, for_gpus = cpu_multiplies_bf16(), torch_is_for_gpus()
    return Devices("cpu", _usable_cores(), usable_memory(), _cpu_name(), bf16=bf16, torch_for_gpus=for_gpus)


def assumed_devices(nproc_per_node: int | None) -> Devices:
    """Return what a plan supposes of machines that cannot be asked."""
    return Devices("cuda", nproc_per_node or 8, 80 * 10**9, "a GPU with 80 GB and bf16", bf16=True)


def torch_is_for_gpus() -> bool:
    """Return whether the torch that is installed was built for GPUs, as its version.py says: PyPI's for Linux is."""
    found = find_spec("torch")
    if found is None or found.origin is None:
        return False
    says = text_of(str(Path(found.origin).with_name("version.py")))
    return re.search(r"^(cuda|hip|xpu)\b[^=\n]*= *['\"]", says, re.MULTILINE) is not None


def _usable_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return psutil.cpu_count(logical=False) or 1


def _cpu_name() -> str:
    for line in text_of("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "CPU"


def cpu_multiplies_bf16() -> bool:
    """Whether bf16 products are faster than fp32 ones: `avx512_bf16` and `amx_bf16` on x86, `bf16` on Arm.

    Intel's from Sapphire Rapids on (they have `avx512_fp16`) do it by AMX. Where a virtual machine hides that, the rest takes
    twice the time of fp32: 168 GFLOP/s against 334 on two cores of an Emerald Rapids.
    """
    words = set(text_of("/proc/cpuinfo").split())
    if {"GenuineIntel", "avx512_fp16"} <= words:
        return "amx_bf16" in words
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(words)
