"""Memory that stays: new memory for each product would fragment the heap."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor


class Scratch(threading.local):
    """This thread's memory, by name, format and device. It grows to the largest tensor that was asked for, and is kept."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def take(
        self, name: str, shape: Sequence[int], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Return a contiguous tensor with any content, valid until the name is taken again."""
        key = name, dtype, torch.device(device)
        size = math.prod(shape)
        if key not in self._held or self._held[key].numel() < size:
            self._held.pop(key, None)  # before there is the larger one
            self._held[key] = torch.empty(size, dtype=dtype, device=device)
        return self._held[key][:size].view(*shape)
