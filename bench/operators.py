"""What torch's profiler saw, by operator and by kind of work: processor time on a CPU, time of kernels on a GPU."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

GROUPS = {
    "products": ("multiply", "aten::mm", "aten::addmm", "aten::bmm"),
    "attention": (
        *("_FusedAttention", "_FlashAttention", "_EfficientAttention"),
        *("aten::_scaled_dot_product", "aten::_flash_attention", "aten::_efficient_attention"),
    ),
    "norms, SwiGLU, rotation": ("_RMSNorm", "_SwiGLU", "_Rotate", "aten::_fused_rms_norm", "Liger"),
    "loss, without its products": ("_WeightedNLL",),
    "optimizer": ("Optimizer.", "aten::_fused_adam", "aten::_foreach"),
    "communication": ("gloo:", "c10d::", "nccl:", "_c10d_functional::"),
}
"""Names of the profiler's events begin so; what none of these fits is the rest."""
REST = "the rest"
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
"""Calls in which the host does nothing but wait for the GPU."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Seconds of what was profiled, on the device that computed it."""

    operators: dict[str, float]
    groups: dict[str, float]
    """Of `GROUPS`, and `REST`."""
    kernels: int
    """Launched on the GPU, copies of memory included; 0 on a CPU."""
    kernel_seconds: float
    """Of all of them, one after the other."""
    host_seconds: float
    """Processor time of all operators and launches, without the waiting for the GPU. The profiler itself adds to it."""


def activities() -> list[ProfilerActivity]:
    """Return what the profiler has to look at on this machine."""
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]


def read(seen: Any) -> Profile:
    """Return what a `torch.profiler.profile` saw after it was closed.

    The time of a kernel belongs to the operator that launched it, and that to the innermost group around it: norms and loss are
    functions of our own, whose kernels are launched by torch's operators inside.
    """
    operators: Counter[str] = Counter()
    groups: dict[str, float] = defaultdict(float)
    host, kernels, kernel_seconds = 0.0, 0, 0.0
    on_gpu = torch.cuda.is_available()
    for event in seen.events():
        if event.device_type != DeviceType.CPU:
            if not getattr(event, "is_user_annotation", False):
                kernels, kernel_seconds = kernels + 1, kernel_seconds + event.self_device_time_total / 1e6
            continue
        own_host = event.self_cpu_time_total / 1e6
        host += 0.0 if event.name in _WAITS else own_host
        own = event.self_device_time_total / 1e6 if on_gpu else own_host
        operators[event.name] += own
        groups[_group_around(event)] += own
    return Profile(dict(operators), dict(groups), kernels, kernel_seconds, host)


def _group_around(event: Any) -> str:
    while event is not None:
        group = next((name for name, begins in GROUPS.items() if event.name.startswith(begins)), None)
        if group is not None:
            return group
        event = event.cpu_parent
    return REST
