"""Which activations a GPU recomputes: what fits trains, and of what fits the fastest by a rule of three numbers.

    time for a token  ~  (1 + FIXED_TOKENS / tokens of a micro-batch) * (1 + share of the products that are done again)

Recomputing leaves memory for a larger micro-batch. That pays only where micro-batches are so small that what a pass costs
whatever its size weighs more: adding to the fp32 gradients of all weights, and starting the kernels.
"""

from __future__ import annotations

from medsft.core.models.config import ModelConfig

KINDS = ("none", "selective", "full")
"""From the one that keeps all activations to the one that keeps least."""
_FIXED_TOKENS = 512
"""Tokens whose products take as long as a pass takes beside them. For each weight, gradients are read and written: 10 bytes at
an H100's 2.9 TB/s; and products take 6 operations a token, at 620 TFLOP/s. That makes 360; the rest is for launches."""
_PRODUCTS_OF_DOWN = 1 / 3
"""Share of the feed-forward part that is never done again: nothing in the backward pass needs its last product."""


def recompute_cost(model: ModelConfig, recompute: str, *, frozen: bool) -> float:
    """Return the products that are done again, as a share of those of a pass without recomputation.

    That has one forward and two backward products for each weight, or one backward product where weights are `frozen`.
    """
    queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    attention = model.hidden_size * (2 * queries + 2 * keys)
    feed_forward = 3 * model.hidden_size * model.intermediate_size
    whole = model.num_layers * (attention + feed_forward) + model.vocab_size * model.hidden_size
    again = {"none": 0.0, "selective": (1 - _PRODUCTS_OF_DOWN) * feed_forward}
    again["full"] = attention + again["selective"]
    return model.num_layers * again[recompute] / (whole * (2 if frozen else 3))


def relative_speed(tokens: int, cost: float) -> float:
    """Return the speed of training with micro-batches of `tokens`, as a share of that with endless ones and none recomputed."""
    return tokens / (tokens + _FIXED_TOKENS) / (1 + cost)
