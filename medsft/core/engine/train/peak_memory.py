"""How much memory a rank has used at most, as the machine counts it."""

from __future__ import annotations

import resource

import torch


def peak_memory(device: torch.device) -> int:
    """Return the most bytes this rank has used.

    On a CPU that is resident memory. On a GPU it is what torch has reserved at most, gaps included, and what the card says is
    used beside that now: the CUDA context, NCCL's buffers, other processes. So it compares with the memory of the card.
    """
    if device.type != "cuda":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    reserved = torch.cuda.max_memory_reserved(device)
    if getattr(torch.cuda.get_device_properties(device), "is_integrated", False):
        return reserved  # GPU and system share one memory, most of whose use is not this rank's
    free, total = torch.cuda.mem_get_info(device)
    return reserved + max(0, total - free - torch.cuda.memory_reserved(device))
