"""Causal attention of one document made of matrix products, for the CPU.

A block of queries is multiplied with the keys that it may see and no others. All query heads that share a key head are rows
of the same product, so keys and values are never copied per query head. Only a block of probabilities exists at a time; the
backward computes it again.

Shapes: n tokens, H query heads, K key/value heads, G = H / K, d head size. Rows of `q` and of results are ordered
[K, n * G, d] with the G heads of one token side by side, so that a block of tokens is a block of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


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
        for rows, seen, mask in _blocks(q_rows, k_rows, window):
            p = _probabilities(q_rows[:, rows], k_rows[:, seen], mask)
            out[:, rows] = p @ v_rows[:, seen]
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
        for rows, seen, mask in _blocks(q, k, ctx.window):
            p = _probabilities(q[:, rows], k[:, seen], mask)
            dv[:, seen] += p.mT @ grad[:, rows]
            dp = grad[:, rows] @ v[:, seen].mT
            ds = torch._softmax_backward_data(dp, p, -1, dtype)  # p * (dp - sum(p * dp)) in one pass
            dq[:, rows] = ds @ k[:, seen]
            dk[:, seen] += ds.mT @ q[:, rows]
        dq *= q.shape[-1] ** -0.5
        return _tokens(dq, tokens), _tokens(dk.to(dtype), tokens), _tokens(dv.to(dtype), tokens), None


def _blocks(q: Tensor, k: Tensor, window: int | None) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield for each block of tokens its rows of `q`, the keys that it sees, and a mask for the last of these keys.

    The mask [rows, last keys] is 0, or -inf where a row must not see a key; in front of it, every row sees every key.
    """
    tokens, group = k.shape[1], q.shape[1] // k.shape[1]
    # Small blocks waste less above the diagonal, large ones multiply faster; measured with 64-wide heads.
    size = min(tokens, 128 if q.dtype == torch.bfloat16 else 64)
    for start in range(0, tokens, size):
        end = min(start + size, tokens)
        rows = slice(start * group, end * group)
        if window is None:
            yield rows, slice(0, end), _mask(end - start, 0, window, group, q.dtype, q.device)
        else:
            first = max(0, start - window + 1)
            yield rows, slice(first, end), _mask(end - start, start - first, window, group, q.dtype, q.device)


@lru_cache(maxsize=64)
def _mask(tokens: int, before: int, window: int | None, group: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the mask of `tokens` in a row, `group` rows each, over `before` keys in front of them and themselves."""
    distance = torch.arange(tokens, device=device)[:, None] - torch.arange(-before, tokens, device=device)
    hidden = (distance < 0) | (distance >= (window or tokens))
    mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill(hidden, -torch.inf)
    return mask.repeat_interleave(group, dim=0)


def _probabilities(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """Return softmax(q k^T + mask) [K, rows, keys], the mask being for the last keys; `q` is scaled already."""
    scores = q @ k.mT
    scores[..., -mask.shape[1] :] += mask
    return scores.softmax(-1)


def _rows(heads: Tensor, kv_heads: int) -> Tensor:
    """[n, H, d] to [K, n * G, d]."""
    n, _, d = heads.shape
    return heads.reshape(n, kv_heads, -1, d).transpose(0, 1).reshape(kv_heads, -1, d).contiguous()


def _tokens(rows: Tensor, n: int) -> Tensor:
    """[K, n * G, d] to [n, H, d]."""
    kv_heads, _, d = rows.shape
    return rows.view(kv_heads, n, -1, d).transpose(0, 1).reshape(n, -1, d)
