"""Causal attention inside each document of one token stream, without padding.

Shapes: T tokens in the stream, H query heads, K key/value heads (H a multiple of K), d head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from medsft.core.engine.kernels import Kernels, kernels_for
from medsft.core.engine.nn.cuda_attention import Spans, attend_on_gpu


class Sequences(Protocol):
    """The texts of one token stream [T]: where each of its tokens stands in its text, and what it sees."""

    @property
    def position_ids(self) -> Tensor:
        """int64 [T]: place of each token in its text, from 0."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        """Return what each token takes from those that it sees, [T, H, d]. The layers call it in their order."""


@dataclass(frozen=True, slots=True)
class PackedSequences:
    """Documents laid end to end in one token stream [T]: where each begins and ends."""

    position_ids: Tensor
    """int64 [T]: place of each token in its document, from 0."""
    cu_seqlens: Tensor
    """int32 [documents + 1]: cumulative lengths; document i is the tokens from cu_seqlens[i] up to, not including,
    cu_seqlens[i + 1]. On the device of `position_ids`."""
    lengths: tuple[int, ...]
    """Length of each document, on the host."""

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> PackedSequences:
        """Describe documents of these `lengths` (each at least 1) laid end to end."""
        position_ids = torch.cat([torch.arange(length) for length in lengths])
        cu_seqlens = torch.tensor((0, *accumulate(lengths)), dtype=torch.int32)
        return cls(position_ids.to(device), cu_seqlens.to(device), tuple(lengths))

    def to(self, device: torch.device) -> PackedSequences:
        """Return the same on another device."""
        return PackedSequences(self.position_ids.to(device), self.cu_seqlens.to(device), self.lengths)

    @property
    def max_seqlen(self) -> int:
        """Length of the longest document."""
        return max(self.lengths)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
        """See `Sequences` and the function `attend`."""
        return attend(q, k, v, self, window)


def attend(q: Tensor, k: Tensor, v: Tensor, sequences: PackedSequences, window: int | None = None) -> Tensor:
    """Return softmax(q k^T / sqrt(d)) v [T, H, d] where a token sees itself and what precedes it in its document.

    `q` is [T, H, d]; `k` and `v` are [T, K, d]. With a `window`, a token sees only that many tokens, itself included.
    """
    if q.is_cuda:
        offsets, longest = sequences.cu_seqlens, sequences.max_seqlen
        spans = Spans(offsets, offsets, (longest, longest))
        if (out := attend_on_gpu(q, k, v, spans, window)) is not None:
            return out
    if kernels := kernels_for(q, k, v):
        return _FusedAttention.apply(q, k, v, sequences.cu_seqlens, window, kernels)
    lengths = list(sequences.lengths)
    # split, not slices: its backward joins the gradients once, where that of each slice would fill a whole [T, H, d].
    documents = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
    return torch.cat([_attend_document(*document, window) for document in documents])


class _FusedAttention(torch.autograd.Function):
    """Attention by the device's kernels. Beside input and output it saves one number per token and head for the backward."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, window: int | None, kernels: Kernels) -> Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        out, log_sums = kernels.attention(q, k, v, cu_seqlens, window)
        ctx.save_for_backward(q, k, v, out, log_sums, cu_seqlens)
        ctx.window, ctx.kernels = window, kernels
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, log_sums, cu_seqlens = ctx.saved_tensors
        grads = ctx.kernels.attention_backward(q, k, v, out, log_sums, grad.contiguous(), cu_seqlens, ctx.window)
        return *grads, None, None, None


def _attend_document(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """Attend within one document [n, H, d] with torch's own kernel."""
    mask = None
    if window is not None and window < len(q):
        mask = torch.ones(len(q), len(q), dtype=torch.bool, device=q.device).tril().triu(1 - window)
    q, k, v = (heads.transpose(0, 1)[None] for heads in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
    return out[0].transpose(0, 1)
