"""Rotary position embeddings (Su et al. 2021, arXiv:2104.09864), with the scalings that the supported families use."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from medsft.core.models.config import ModelConfig

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines, each [T, 1, head_dim / 2]."""


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """Return the angle per position of each of the head_dim / 2 rotated pairs, fp32 on the CPU."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu") / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling["rope_type"] == "linear":
        return frequencies / scaling["factor"]
    return _llama3(frequencies, config)


def rotary(frequencies: Tensor, positions: Tensor, dtype: torch.dtype) -> Rotary:
    """Return the tables for `positions` [T], computed in fp32 and then rounded to `dtype`, as transformers does.

    `frequencies` are those of `inverse_frequencies`, on the device of `positions`.
    """
    angles = positions.float()[:, None, None] * frequencies
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _llama3(frequencies: Tensor, config: ModelConfig) -> Tensor:
    """Llama 3.1: slow waves are stretched by `factor`, fast ones kept, and those between interpolated."""
    scaling = config.rope_scaling or {}
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    original_length = scaling.get("original_max_position_embeddings", config.max_position_embeddings)
    turns = original_length * frequencies / (2 * math.pi)  # full waves that fit into the pretraining context
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return kept * frequencies + (1.0 - kept) * frequencies / factor
