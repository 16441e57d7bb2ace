"""Copies from the host to a device that nobody waits for."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the CPU on `device`. On a GPU the copy only joins the queue of work, so the host goes on at once.

    That takes pinned memory, which torch's allocator keeps for the next copy, and not before this one is done.
    """
    if device.type != "cuda" or not tensor.numel():
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
