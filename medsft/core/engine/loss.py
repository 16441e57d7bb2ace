"""Cross entropy of the tokens that count, without ever holding their whole logits.

The logits of N tokens over a vocabulary V are the largest tensor of a training step (N x V, in fp32 several times over). Here
they exist for a chunk of rows at a time, and rows of weight 0 are not projected at all. Because the loss is the end of the
network, its gradients are computed in the forward pass, while the chunk is at hand; the backward pass only scales them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHUNK_BYTES = 128 * 2**20


@dataclass(frozen=True, slots=True)
class Sums:
    """What `weighted_nll` adds up. Everything but `loss` is detached."""

    loss: Tensor
    """fp32 scalar, differentiable: sum over tokens of weight * nll, in nats."""
    nll: Tensor
    """fp32 [T]: -log p(label) of each token, 0 where the weight is 0."""
    correct: Tensor
    """bool [T]: the label is the most likely token; False where the weight is 0, and everywhere while training."""


def weighted_nll(
    hidden: Tensor,
    head_weight: Tensor,
    labels: Tensor,
    weights: Tensor,
    *,
    chunk_rows: int | None = None,
    vocab_limit: int | None = None,
) -> Sums:
    """Return sum(weights * -log softmax(hidden @ head_weight.T)[labels]) and what it is made of.

    `hidden` [T, h], `head_weight` [V, h], `labels` int64 [T] (any value where the weight is 0), `weights` [T] of at least 0.
    `chunk_rows` bounds how many tokens are projected at a time (default: 128 MiB of fp32 logits). Rows of `head_weight` from
    `vocab_limit` on are padding and take no part. The softmax is in fp32 whatever the dtype of the weights.
    """
    rows = weights.nonzero().squeeze(1)
    limit = head_weight.shape[0] if vocab_limit is None else vocab_limit
    chunk = chunk_rows or max(1, _CHUNK_BYTES // (4 * limit))
    selected = hidden.index_select(0, rows)
    training = torch.is_grad_enabled() and (hidden.requires_grad or head_weight.requires_grad)
    loss, row_nll, row_correct = _WeightedNLL.apply(
        selected, head_weight, labels[rows], weights[rows].float(), chunk, limit, training
    )
    nll = torch.zeros(len(labels), device=hidden.device).index_copy(0, rows, row_nll)
    correct = torch.zeros(len(labels), dtype=torch.bool, device=hidden.device).index_copy(0, rows, row_correct)
    return Sums(loss, nll, correct)


class _WeightedNLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, labels: Tensor, weights: Tensor, chunk: int, limit: int, training: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        nll = torch.zeros(len(labels), device=hidden.device)
        correct = torch.zeros(len(labels), dtype=torch.bool, device=hidden.device)
        head_used = head[:limit]
        grads = _Gradients.like(hidden, head, single_chunk=len(labels) <= chunk) if training else None
        for start in range(0, len(labels), chunk):
            part = slice(start, start + chunk)
            logits = hidden[part] @ head_used.T
            if grads is None:
                correct[part] = logits.argmax(-1) == labels[part]
            log_p = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
            del logits
            nll[part] = -log_p.gather(1, labels[part, None]).squeeze(1)
            if grads is not None:
                grads.add(part, log_p, hidden, head_used, labels, weights)
        ctx.grads = grads
        ctx.mark_non_differentiable(nll, correct)
        return (weights * nll).sum(), nll, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grads, ctx.grads = ctx.grads, None
        hidden = grads.hidden.mul_(grad_loss)
        head = grads.head.mul_(grad_loss).to(hidden.dtype)
        return hidden, head, None, None, None, None, None


@dataclass(slots=True)
class _Gradients:
    """Gradients of the loss, filled chunk by chunk."""

    hidden: Tensor
    head: Tensor
    """In fp32 when several chunks are added up."""

    @classmethod
    def like(cls, hidden: Tensor, head: Tensor, *, single_chunk: bool) -> _Gradients:
        return cls(torch.empty_like(hidden), torch.zeros_like(head, dtype=head.dtype if single_chunk else torch.float32))

    def add(self, part: slice, log_p: Tensor, hidden: Tensor, head: Tensor, labels: Tensor, weights: Tensor) -> None:
        """Add one chunk; overwrites `log_p` [rows, V]."""
        scale = weights[part, None].to(hidden.dtype)
        error = log_p.exp_()
        error[torch.arange(len(error), device=error.device), labels[part]] -= 1.0
        error = error.to(hidden.dtype)
        # The weight is put on the narrow factor of each product, which saves a pass over [rows, V].
        self.hidden[part] = (error @ head) * scale
        self.head[: len(head)] += error.T @ (hidden[part] * scale)
