"""Number of iterations, and the learning rate of each. Pure functions."""

from __future__ import annotations

import math

from medsft.core.config import RunConfig


def plan_iterations(documents: int, epochs: float, global_batch: int) -> int:
    """Return epochs * documents / global_batch, rounded up, then up to a multiple of 10, as the original plans it."""
    return 10 * math.ceil(math.ceil(epochs * documents / global_batch) / 10)


def learning_rate(config: RunConfig, iteration: int, num_iterations: int) -> float:
    """Return the learning rate of an iteration counted from 1.

    It rises linearly over the first `warmup_fraction`, then follows half a cosine from `lr` to `min_lr`, reached at the last
    iteration. The original counts from 0, so its first update has a rate of 0 and its last stays above the minimum:
    `--compat megatron-llm` does the same.
    """
    count = iteration - 1 if config.compat == "megatron-llm" else iteration
    warmup = config.warmup_fraction * num_iterations
    if warmup > 0 and count <= warmup:
        return config.lr * count / warmup
    if count > num_iterations:
        return config.min_lr
    progress = (count - warmup) / max(num_iterations - warmup, 1e-9)
    return config.min_lr + 0.5 * (config.lr - config.min_lr) * (1 + math.cos(math.pi * progress))
