"""How much arithmetic a training step is, and so the least time in which matrix products alone could be done."""

from __future__ import annotations

from collections.abc import Sequence

from medsft.core.models.config import ModelConfig


def per_token(model: ModelConfig, lengths: Sequence[int], supervised: Sequence[float], *, frozen: bool = False) -> float:
    """Return FLOPs of forward and backward per token of documents of these `lengths`, of whose tokens `supervised` have a loss.

    A product with a weight costs 2 FLOPs per weight and token forward and twice that backward: 6, or 4 where the weight is
    `frozen` and has no gradient, beside which an adapter is not counted. Projections of layers are
    done for every token, the projection onto the vocabulary for tokens with a loss. Attention multiplies queries with keys and
    probabilities with values, and half of that is above the diagonal: 6 * n * n * heads * head_dim a layer. Nothing is added
    for what a program computes twice or for padding, so that programs are held against the same number.
    """
    q, kv = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    layer = model.hidden_size * (2 * q + 2 * kv + 3 * model.intermediate_size)
    tokens, factor = sum(lengths), 4 if frozen else 6
    projections = factor * model.num_layers * layer * tokens
    vocabulary = factor * model.vocab_size * model.hidden_size * sum(supervised)
    attention = 6 * model.num_layers * q * sum(n * n for n in lengths)
    return (projections + vocabulary + attention) / tokens
