"""Causal attention inside each document of one token stream, without padding.

Shapes: T tokens in the stream, H query heads, K key/value heads (H a multiple of K), d head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from medsft.core.engine.kernels import cpu


@dataclass(frozen=True, slots=True)
class Stream:
    """Where the documents of a token stream [T] begin and end."""

    positions: Tensor
    """int64 [T]: place of each token in its document, from 0."""
    boundaries: tuple[int, ...]
    """[documents + 1]: document i is the tokens boundaries[i] up to, not including, boundaries[i + 1]."""
    offsets: Tensor
    """`boundaries` as int32 on the device of `positions`, for the kernels that read it there."""

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> Stream:
        """Describe documents of these `lengths` (each at least 1) laid end to end."""
        boundaries = (0, *accumulate(lengths))
        positions = torch.cat([torch.arange(length) for length in lengths])
        offsets = torch.tensor(boundaries, dtype=torch.int32)
        return cls(positions.to(device), boundaries, offsets.to(device))

    @property
    def longest(self) -> int:
        """Length of the longest document."""
        return max(end - start for start, end in pairwise(self.boundaries))


def attend(q: Tensor, k: Tensor, v: Tensor, stream: Stream, window: int | None = None) -> Tensor:
    """Return softmax(q k^T / sqrt(d)) v [T, H, d] where a token sees itself and what precedes it in its document.

    `q` is [T, H, d]; `k` and `v` are [T, K, d]. With a `window`, a token sees only that many tokens, itself included.
    """
    if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16):
        return _attend_flash(q, k, v, stream, window)
    if cpu.takes(q, k, v):
        return _TiledAttention.apply(q, k, v, stream.offsets, window)
    lengths = [end - start for start, end in pairwise(stream.boundaries)]
    # split and not slices: its backward joins the gradients in one go, where each slice's would fill a whole [T, H, d].
    documents = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
    return torch.cat([_attend_document(*document, window) for document in documents])


class _TiledAttention(torch.autograd.Function):
    """The kernels of `native`. They keep one number a token and head for the backward beside their input and output."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, window: int | None) -> Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        out, log_sums = cpu.attention(q, k, v, offsets, window)
        ctx.save_for_backward(q, k, v, out, log_sums, offsets)
        ctx.window = window
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, log_sums, offsets = ctx.saved_tensors
        grads = cpu.attention_backward(q, k, v, out, log_sums, grad.contiguous(), offsets, ctx.window)
        return *grads, None, None


def _attend_document(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """Attend within one document [n, H, d] with torch's own kernel."""
    mask = None
    if window is not None and window < len(q):
        mask = torch.ones(len(q), len(q), dtype=torch.bool, device=q.device).tril().triu(1 - window)
    q, k, v = (heads.transpose(0, 1)[None] for heads in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
    return out[0].transpose(0, 1)


def _attend_flash(q: Tensor, k: Tensor, v: Tensor, stream: Stream, window: int | None) -> Tensor:
    """All documents in one launch of the variable-length flash kernel, which takes 16-bit numbers only.

    Not run on a GPU yet.
    """
    from torch.nn.attention.varlen import varlen_attn

    left = -1 if window is None else window - 1
    longest = stream.longest
    out = varlen_attn(q, k, v, stream.offsets, stream.offsets, longest, longest, window_size=(left, 0), enable_gqa=True)
    assert isinstance(out, Tensor)
    return out
