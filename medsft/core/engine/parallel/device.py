"""The device of a rank, which has to be of the kind that the plan was made for."""

from __future__ import annotations

import os
import socket

import torch

from medsft.core.units import counted
from medsft.errors import LaunchError, MismatchError

_BOTH = "`medsft doctor` shows what medsft and torch see of this machine."


def rank_device(planned: str | None = None) -> torch.device:
    """Return the GPU of this rank, by its number on the node, or the CPU where torch sees no GPU.

    `planned` is the kind of device of the plan, `cuda` or `cpu`. Raises `MismatchError` where torch sees the other kind: a plan
    has the memory, the number format and the processes of its own kind. Raises `LaunchError` where the node has fewer GPUs
    than ranks.
    """
    found = "cuda" if torch.cuda.is_available() else "cpu"
    if planned == "cuda" and found == "cpu":
        raise _no_gpu()
    if planned == "cpu" and found == "cuda":
        raise MismatchError(
            f"The plan is for the CPU, and torch sees {counted(torch.cuda.device_count(), 'GPU')} on {socket.gethostname()} "
            f"({torch.cuda.get_device_name(0)}): nvidia-smi did not show it when the plan was made.",
            hint=f"To train on the CPU, set CUDA_VISIBLE_DEVICES= (to nothing). {_BOTH}",
        )
    if found == "cpu":
        return torch.device("cpu")
    number, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= count:
        raise LaunchError(
            f"Process {number + 1} of {socket.gethostname()} has no GPU: torch sees {counted(count, 'GPU')} there.",
            hint=f"Use --nproc_per_node {count}, or nodes that all have as many GPUs. Of slices (MIG) a process sees one.",
        )
    return torch.device("cuda", number)


def _no_gpu() -> MismatchError:
    built = torch.version.cuda or torch.version.hip
    seen = f"The plan is for a GPU, which nvidia-smi shows, and torch {torch.__version__} sees none on {socket.gethostname()}"
    on_cpu = "to train on the CPU, set CUDA_VISIBLE_DEVICES= (to nothing)"
    if built is None:
        hint = f"Install a build of torch for the GPU (pytorch.org), or, {on_cpu}. {_BOTH}"
        return MismatchError(f"{seen}: this build of torch is for CPUs alone.", hint=hint)
    kind = "CUDA" if torch.version.cuda else "ROCm"
    hint = f"The driver must be new enough for {kind} {built}: `nvidia-smi` shows which it serves. Or, {on_cpu}. {_BOTH}"
    return MismatchError(f"{seen}: it is built for {kind} {built}, which does not start.", hint=hint)
