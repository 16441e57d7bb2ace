"""What a GPU holds beside weights, optimizer state and gradients: activations, the loss, messages between ranks.

    peak = the most of   (a) the first backward pass, at the loss and in the last layer: activations of all layers
                         (b) its end, in the first layer: gradients of all layers

Sizes follow from which tensors autograd keeps (`engine.nn`), and are held to the live memory of a step on fake CUDA tensors
(`tests/engine/train/test_gpu_memory.py`). Not run on a GPU yet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from medsft.core.models.config import ModelConfig
from medsft.core.planning.layout import Layout

_COMMUNICATOR_BYTES = 400 << 20
"""Buffers of NCCL for a group of ranks on one node or several, with its default of 4 MiB for each channel and protocol."""
_LAYERS_IN_MESSAGES = 2
"""Layers whose weights or gradients are in a message at once beside those that compute: FSDP gathers one ahead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPass:
    """A forward and a backward pass of one rank."""

    tokens: int
    """Of a micro-batch."""
    in_flight: int
    """Micro-batches whose activations are kept at once."""
    layers: int
    """Of this stage."""
    unit: int
    """Bytes of a number in the computing format."""
    recompute: str
    has_loss: bool
    """Whether this is the last stage."""
    trains_head: bool
    """Whether the output projection gets a gradient."""
    adapter_numbers: int | None = None
    """A token's numbers that the adapters of a layer keep, where the model beside them is frozen."""
    logits_bytes: int
    """Of the largest tensor of logits in fp32."""


def activations_on_gpu(model: ModelConfig, layout: Layout, work: GpuPass, *, gradients: int, whole: bool) -> int:
    """Return the bytes at the peak beside weights, optimizer state and `gradients` bytes of gradients.

    `whole` says that the gradients are there from the first backward pass on: those of an earlier micro-batch are added to.
    """
    kept = work.tokens * kept_of_layer(model, layout.tp, work) * work.layers * work.in_flight
    at_work = work.tokens * _work_of_layer(model, layout.tp, work)
    if work.adapter_numbers is None:
        at_work += work.unit * model.hidden_size * model.intermediate_size / layout.tp  # the gradient of a matrix
    head = math.ceil(model.vocab_size / layout.tp) * model.hidden_size if work.has_loss and work.trains_head else 0
    tied = work.unit * head if model.tie_embeddings else 0  # added to that of the look-up, at the end
    after_loss = tied if whole or tied else 4 * head
    begin = kept + max(_loss(model, layout.tp, work, head), after_loss + at_work)
    end = kept / max(1, work.layers) + at_work + 2 * tied
    return math.ceil(max(begin + gradients * whole, end + gradients) - gradients)


def kept_of_layer(model: ModelConfig, tp: int, work: GpuPass, *, recompute: str | None = None) -> float:
    """Return the bytes a token that a layer keeps for its backward pass.

    The residual stream in front of both norms; what queries, keys and values, and what gate and up are made from (whole on
    each tensor-parallel rank); queries, keys, values, the output of attention and one fp32 number for each head; gate and up.
    """
    h, queries, keys, inner = _widths(model, tp)
    recompute = recompute or work.recompute
    if recompute == "full":
        return work.unit * h / tp
    attention = work.unit * (2 * queries + 2 * keys) + 4 * model.num_heads / tp
    adapters = work.unit * (work.adapter_numbers or 0)
    if recompute == "selective":
        return work.unit * (2 * h / tp + h) + attention + adapters + 4
    normed = 0 if work.adapter_numbers is not None and tp == 1 else 2 * h  # beside a frozen model these are computed again
    return work.unit * (2 * h / tp + normed + 2 * inner) + attention + adapters + 8


def _work_of_layer(model: ModelConfig, tp: int, work: GpuPass) -> float:
    """Return the bytes a token of the backward pass of one layer beside what the layers keep.

    In the feed-forward part: the gradient of the product of gate and up, those of both, and two steps on the way to these.
    """
    h, _, _, inner = _widths(model, tp)
    feed_forward = work.unit * (4 * inner + 2 * h)
    if work.recompute == "selective":
        return feed_forward + work.unit * (2 * inner + h)
    if work.recompute == "full":
        return feed_forward + kept_of_layer(model, tp, work, recompute="none")
    return feed_forward


def _loss(model: ModelConfig, tp: int, work: GpuPass, head: int) -> float:
    """Return the bytes at work in the loss: hidden states and their gradient, logits, the gradient of the output projection.

    That is added up in fp32 and then rounded; `head` is its numbers, 0 where it gets none.
    """
    if not work.has_loss:
        return 0
    logits = min(work.logits_bytes, 4 * work.tokens * math.ceil(model.vocab_size / tp))
    computing = logits * (2 if work.unit == 4 else 2.5)  # the logits, in fp32 too, and the logarithms of their softmax
    return 3 * work.unit * work.tokens * model.hidden_size + max(4 * head + computing, (4 + work.unit) * head)


def _widths(model: ModelConfig, tp: int) -> tuple[float, float, float, float]:
    """Return the numbers a token of the residual stream, and on a rank of queries, of keys and of the feed-forward part."""
    d = model.head_dim
    return model.hidden_size, model.num_heads * d / tp, model.num_kv_heads * d / tp, model.intermediate_size / tp


def communicator_bytes(layout: Layout) -> int:
    """Return the bytes of NCCL's buffers: for the group of all ranks, and for each kind of parallelism that there is."""
    if layout.world == 1:
        return 0
    kinds = sum(size > 1 for size in (layout.pp, layout.dp, layout.tp))
    return _COMMUNICATOR_BYTES * (1 + kinds)


def message_bytes(layer: int, ends: int, *, unit: int) -> int:
    """Return the bytes of FSDP's messages beside weights and gradients: numbers of the largest `layer`, and of the `ends`.

    Layers are gathered one ahead; gradients are reduced in fp32, those of the embedding and the output projection together.
    """
    return max(_LAYERS_IN_MESSAGES * layer * (unit + 4), 4 * ends)
