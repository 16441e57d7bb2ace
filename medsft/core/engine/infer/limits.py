"""How much of a model's work is done at once on a device."""

from __future__ import annotations

import torch

from medsft.core.engine.infer.generation import Limits
from medsft.core.engine.nn.model import Decoder
from medsft.core.host_memory import free_memory

_CPU_TOKENS, _CPU_SEQUENCES = 2048, 64
"""Where products no longer get faster and what goes from one to the next still lies in the cache."""
_GPU_TOKENS, _GPU_SEQUENCES = 16_384, 256
_CACHE_SHARE_OF_CPU, _CACHE_SHARE_OF_GPU = 0.25, 0.7
"""Of the memory that is free beside the model."""


def limits_for(decoder: Decoder) -> Limits:
    """Return what fits the device of a loaded model."""
    weight, config = decoder.head_weight(), decoder.config
    token_bytes = 2 * config.num_layers * config.num_kv_heads * config.head_dim * weight.element_size()
    if weight.is_cuda:
        free = _CACHE_SHARE_OF_GPU * torch.cuda.mem_get_info(weight.device)[0]
        return Limits(sequences=_GPU_SEQUENCES, prompt_tokens=_GPU_TOKENS, cache_tokens=int(free / token_bytes))
    free = _CACHE_SHARE_OF_CPU * free_memory()
    return Limits(sequences=_CPU_SEQUENCES, prompt_tokens=_CPU_TOKENS, cache_tokens=int(free / token_bytes))


def tokens_at_once(device: torch.device) -> int:
    """Return how many tokens are computed at once on a device."""
    return _GPU_TOKENS if device.type == "cuda" else _CPU_TOKENS
