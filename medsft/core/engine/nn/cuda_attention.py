"""Causal attention on a GPU by torch's own kernels: all texts of a stream in one launch, without padding and without scores.

    flash        16-bit numbers, from compute capability 8.0 (Ampere) on; K key/value heads as they are (Dao 2023)
    efficient    fp32, and 16-bit numbers that flash does not take (Rabe and Staats 2021, CUTLASS)

Both are operations below `scaled_dot_product_attention`, which would pad, repeat heads or write scores [H, n, n] for such
streams. `torch.nn.attention.varlen` has the first of them with other arguments in each version of torch; the operations have
had the same since 2.10. Not run on a GPU yet.

Shapes: T queries, S keys, H query heads, K key/value heads (H a multiple of K), d head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_SIXTEEN_BIT = (torch.bfloat16, torch.float16)
_FLASH_CAPABILITY = (8, 0)
_FLASH_HEAD_SIZE = 256
_FLASH_HEAD_MULTIPLE = 8
_FIRST_SEES_FIRST, _LAST_SEES_LAST = 1, 2
"""The efficient kernel's numbers for a causal mask: the first query of a text sees its first key alone, or the last one all."""


@dataclass(frozen=True, slots=True)
class Spans:
    """Where the queries and the keys of each text begin in their streams. The last query of a text sees all its keys."""

    queries: Tensor
    """int32 [texts + 1]: cumulative numbers of queries, on the device."""
    keys: Tensor
    """int32 [texts + 1]: cumulative numbers of keys, on the device."""
    longest: tuple[int, int]
    """Most queries and most keys of a text, on the host: the kernels are launched for so many."""

    @property
    def has_all_queries(self) -> bool:
        """Whether each key of a text has a query, as in training: the first query then sees the first key alone."""
        return self.queries is self.keys

    @property
    def mask(self) -> int:
        """The efficient kernel's number for the mask."""
        return _FIRST_SEES_FIRST if self.has_all_queries else _LAST_SEES_LAST


def attend_on_gpu(q: Tensor, k: Tensor, v: Tensor, spans: Spans, window: int | None) -> Tensor | None:
    """Return softmax(q k^T / sqrt(d)) v [T, H, d], None where neither kernel takes the tensors.

    `q` is [T, H, d]; `k` and `v` are [S, K, d]. A query sees the keys of its text up to its own place from the end; with a
    `window` only the last so many of them. Gradients are the same bit for bit in every run.
    """
    if window is not None and window >= spans.longest[1]:
        window = None
    if _flash_takes(q):
        return _FlashAttention.apply(q, k, v, spans, window)
    if _efficient_takes(q, spans, window):
        return _EfficientAttention.apply(q, k, v, spans, window)
    return None


@lru_cache
def compute_capability(device: torch.device) -> tuple[int, int]:
    """Return the compute capability of a GPU."""
    return torch.cuda.get_device_capability(device)


def _flash_takes(q: Tensor) -> bool:
    size = q.shape[-1]
    fits = q.dtype in _SIXTEEN_BIT and size <= _FLASH_HEAD_SIZE and size % _FLASH_HEAD_MULTIPLE == 0
    return fits and compute_capability(q.device) >= _FLASH_CAPABILITY


def _efficient_takes(q: Tensor, spans: Spans, window: int | None) -> bool:
    if torch.version.hip is not None and (window is not None or not spans.has_all_queries):
        return False  # torch's kernel for AMD has neither a window nor the other mask
    # Before Ampere there is no kernel for bf16.
    return q.dtype in (torch.float32, torch.float16) or (
        q.dtype == torch.bfloat16 and compute_capability(q.device) >= _FLASH_CAPABILITY
    )


@contextmanager
def _one_order() -> Iterator[None]:
    """Have the kernels add up each gradient in one order, so that a resume computes what the uninterrupted run computed.

    Both kernels read torch's deterministic mode when they are called. It holds for the whole process, so it is on for one call
    only: while it is, an operation without such an order would raise in another thread (here those only copy), and new
    memory would be filled, which costs time and is switched off, too.
    """
    mode, warns, filled = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch._C._get_deterministic_fill_uninitialized_memory(),
    )
    # The public functions set the mode of torch's compiler, too, and import it for that.
    torch._C._set_deterministic_algorithms(True, warn_only=False)
    torch._C._set_deterministic_fill_uninitialized_memory(False)
    try:
        yield
    finally:
        torch._C._set_deterministic_algorithms(mode, warn_only=warns)
        torch._C._set_deterministic_fill_uninitialized_memory(filled)


class _FlashAttention(torch.autograd.Function):
    """Beside inputs and output, one fp32 number per query and head is saved for the backward pass."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, spans: Spans, window: int | None) -> Tensor:
        # A window of w tokens: w - 1 before a query's own place and none behind it. Without one, `causal` is the faster mask.
        ctx.window = {} if window is None else {"window_size_left": window - 1, "window_size_right": 0}
        ctx.spans, ctx.causal = spans, window is None
        out, log_sums, seed, offset, _ = torch.ops.aten._flash_attention_forward(
            q, k, v, spans.queries, spans.keys, *spans.longest, 0.0, ctx.causal, False, **ctx.window
        )
        ctx.save_for_backward(q, k, v, out, log_sums, seed, offset)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, log_sums, seed, offset = ctx.saved_tensors
        spans, no_dropout = ctx.spans, (0.0, ctx.causal, seed, offset)
        with _one_order():
            grads = torch.ops.aten._flash_attention_backward(
                grad, q, k, v, out, log_sums, spans.queries, spans.keys, *spans.longest, *no_dropout, **ctx.window
            )
        return *grads, None, None


class _EfficientAttention(torch.autograd.Function):
    """The kernel takes as many key heads as query heads: keys and values are repeated for it, in the backward pass again."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, spans: Spans, window: int | None) -> Tensor:
        heads = q.shape[1]
        ctx.spans, ctx.window = spans, {} if window is None else {"window_size": window}
        out, log_sums, seed, offset, *_ = torch.ops.aten._efficient_attention_forward(
            q[None],
            _repeated(k, heads)[None],
            _repeated(v, heads)[None],
            None,
            spans.queries,
            spans.keys,
            *spans.longest,
            0.0,
            spans.mask,
            any(ctx.needs_input_grad),
            **ctx.window,
        )
        ctx.save_for_backward(q, k, v, out, log_sums, seed, offset)
        return out[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, log_sums, seed, offset = ctx.saved_tensors
        spans, (heads, kv_heads) = ctx.spans, (q.shape[1], k.shape[1])
        with _one_order():
            grad_q, grad_k, grad_v, _ = torch.ops.aten._efficient_attention_backward(
                grad[None],
                q[None],
                _repeated(k, heads)[None],
                _repeated(v, heads)[None],
                None,
                out,
                spans.queries,
                spans.keys,
                *spans.longest,
                log_sums,
                0.0,
                seed,
                offset,
                spans.mask,
                False,
                **ctx.window,
            )
        return grad_q[0], _joined(grad_k[0], kv_heads), _joined(grad_v[0], kv_heads), None, None


def _repeated(x: Tensor, heads: int) -> Tensor:
    """Return keys or values [S, K, d] for each query head, [S, heads, d]."""
    return x[:, :, None].expand(-1, -1, heads // x.shape[1], -1).flatten(1, 2)


def _joined(grad: Tensor, kv_heads: int) -> Tensor:
    """Return the gradient [S, kv_heads, d] of what `_repeated` made of it."""
    return grad if grad.shape[1] == kv_heads else grad.unflatten(1, (kv_heads, -1)).sum(2)
