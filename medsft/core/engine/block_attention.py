"""Causal attention of one document made of matrix products, for the CPU.

A block of queries is multiplied with the keys that it may see and no others. All query heads that share a key head are rows
of the same product, so keys and values are never copied per query head. Only a block of probabilities exists at a time; the
backward computes it again.

Shapes: n tokens, H query heads, K key/value heads, G = H / K, d head size. Rows of `q` and of results are ordered
[K, n * G, d] with the G heads of one token side by side, so that a block of tokens is a block of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from medsft.core.engine import native


def block_attention(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
    """Return softmax(q k^T / sqrt(d)) v [n, H, d], causal, for `q` [n, H, d] and `k`, `v` [n, K, d].

    With a `window`, a token sees only that many tokens, itself included. Probabilities are computed in fp32 and stored in the
    dtype of `q`.
    """
    return _BlockAttention.apply(q, k, v, window)


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        kv_heads = k.shape[1]
        q_rows = _rows(q * q.shape[-1] ** -0.5, kv_heads)
        k_rows, v_rows = _rows(k, kv_heads), _rows(v, kv_heads)
        ctx.save_for_backward(q_rows, k_rows, v_rows)
        ctx.window = window
        out = torch.empty_like(q_rows)
        for block in _blocks(q_rows, k_rows, window):
            scores = q_rows[:, block.rows] @ k_rows[:, block.seen].mT
            out[:, block.rows] = _softmax(scores, block) @ v_rows[:, block.seen]
        return _tokens(out, len(q))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        tokens, dtype = k.shape[1], k.dtype
        grad = _rows(grad, len(k))
        dq = torch.empty_like(q)
        # Each key is seen by many blocks: their contributions are added up in fp32.
        dk, dv = torch.zeros_like(k, dtype=torch.float32), torch.zeros_like(v, dtype=torch.float32)
        for block in _blocks(q, k, ctx.window):
            rows, seen = block.rows, block.seen
            scores = q[:, rows] @ k[:, seen].mT
            dp = grad[:, rows] @ v[:, seen].mT
            p, ds = _softmax_backward(scores, dp, block)
            dv[:, seen] += p.mT @ grad[:, rows]
            dq[:, rows] = ds @ k[:, seen]
            dk[:, seen] += ds.mT @ q[:, rows]
        dq *= q.shape[-1] ** -0.5
        return _tokens(dq, tokens), _tokens(dk.to(dtype), tokens), _tokens(dv.to(dtype), tokens), None


@dataclass(frozen=True, slots=True)
class _Block:
    """Some tokens of a document as queries, and the keys that they see."""

    rows: slice
    """Their rows of `q`."""
    seen: slice
    """Keys that any of them sees; the last `tokens` of these are their own."""
    tokens: int
    group: int
    window: int | None

    def mask(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return 0, or -inf where a row must not see a key, for the last keys; in front of these every row sees every key."""
        before = 0 if self.window is None else self.seen.stop - self.seen.start - self.tokens
        return _mask(self.tokens, before, self.window, self.group, dtype, device)


def _blocks(q: Tensor, k: Tensor, window: int | None) -> Iterator[_Block]:
    tokens, group = k.shape[1], q.shape[1] // k.shape[1]
    # Small blocks waste less above the diagonal, large ones multiply faster; measured with 64-wide heads.
    size = min(tokens, 128 if q.dtype == torch.bfloat16 else 64)
    for start in range(0, tokens, size):
        end = min(start + size, tokens)
        first = 0 if window is None else max(0, start - window + 1)
        yield _Block(slice(start * group, end * group), slice(first, end), end - start, group, window)


@lru_cache(maxsize=64)
def _mask(tokens: int, before: int, window: int | None, group: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the mask of `tokens` in a row, `group` rows each, over `before` keys in front of them and themselves."""
    distance = torch.arange(tokens, device=device)[:, None] - torch.arange(-before, tokens, device=device)
    hidden = (distance < 0) | (distance >= (window or tokens))
    mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill(hidden, -torch.inf)
    return mask.repeat_interleave(group, dim=0)


def _softmax(scores: Tensor, block: _Block) -> Tensor:
    """Return softmax(scores) [K, rows, keys] over the keys that each row sees; uses up `scores`."""
    if native.takes(scores):
        return native.causal_softmax_(scores, block.tokens, block.window)
    mask = block.mask(scores.dtype, scores.device)
    scores[..., -mask.shape[1] :] += mask
    return scores.softmax(-1)


def _softmax_backward(scores: Tensor, dp: Tensor, block: _Block) -> tuple[Tensor, Tensor]:
    """Return (p = softmax(scores), p * (dp - sum(p * dp))); uses up both."""
    if native.takes(scores, dp):
        native.causal_softmax_backward_(scores, dp, block.tokens, block.window)
        return scores, dp
    p = _softmax(scores, block)
    return p, torch._softmax_backward_data(dp, p, -1, p.dtype)


def _rows(heads: Tensor, kv_heads: int) -> Tensor:
    """[n, H, d] to [K, n * G, d]."""
    n, _, d = heads.shape
    return heads.reshape(n, kv_heads, -1, d).transpose(0, 1).reshape(kv_heads, -1, d).contiguous()


def _tokens(rows: Tensor, n: int) -> Tensor:
    """[K, n * G, d] to [n, H, d]."""
    kv_heads, _, d = rows.shape
    return rows.view(kv_heads, n, -1, d).transpose(0, 1).reshape(n, -1, d)
