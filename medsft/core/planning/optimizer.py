"""What an optimizer keeps of each weight that is trained: numbers of how many bytes, in memory and in a checkpoint. No torch.

`adamw` updates fp32 weights by fp32 moments. `adamw8bit` has moments in 8 bits, and in bf16 updates the very weights that
compute, which it rounds stochastically (`engine.train.adamw8bit`). An adapter is small: its weights are fp32 with either.
"""

from __future__ import annotations

ADAMW, ADAMW8BIT = "adamw", "adamw8bit"
BLOCK = 256
"""Neighbors in a row of a moment that share a scale, at most: those of Dettmers et al. 2022."""


def has_fp32_masters(optimizer: str, *, bf16: bool, adapter: bool) -> bool:
    """Return whether the optimizer updates fp32 weights; `bf16` is the format of the computation."""
    return adapter or not bf16 or optimizer == ADAMW


def weight_bytes(optimizer: str, *, bf16: bool, adapter: bool) -> int:
    """Return the bytes of a weight that the optimizer updates."""
    return 4 if has_fp32_masters(optimizer, bf16=bf16, adapter=adapter) else 2


def moment_bytes(optimizer: str) -> float:
    """Return the bytes of both moments of a weight: fp32, or a byte each and a share of its block's fp32 scale."""
    return 8 if optimizer == ADAMW else 2 * (1 + 4 / BLOCK)
