"""Kernels: the one place that says whether there is one for some tensors.

    kernels_for(*tensors) -> Kernels | None    our own, for all steps of a layer; None: torch's operations are used
    norms_for(*tensors) -> Norms | None        norms, by our own kernels or a library's
    liger_for(*tensors)                        SwiGLU and rotation by Liger's kernels, which bring their gradients
    matmul_for(a, b) -> Matmul | None          a matrix product that is faster than torch's here; None: torch's is used

`kernels.cpu` has all functions of `Kernels`. On a GPU libraries do what they do well (`kernels.cuda`), and torch the rest.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from medsft.core.engine.kernels import cpu, cuda
from medsft.core.engine.kernels.cuda import liger


class Norms(Protocol):
    """Norms by fused kernels. A module with these functions is one."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Return (x / rms(x) * weight, 1 / rms(x) in fp32, one for each row) for x [..., size]."""

    def rms_norm_backward(self, x: Tensor, weight: Tensor, inverse: Tensor, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the gradients of x and, in the dtype of `weight`, of `weight`; that of a frozen weight may be None.

        `inverse` is what `rms_norm` of the same module returned.
        """


class Kernels(Norms, Protocol):
    """The fused steps that a device has kernels for. A module with these functions is one.

    T is the number of tokens, H that of query heads, K that of key/value heads, d the size of a head.
    """

    def attention(self, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
        """Return (softmax(q k^T / sqrt(d)) v [T, H, d], log of the sum of each row's exponentials, fp32 [H, T]).

        Contiguous `q` [T, H, d] and `k`, `v` [T, K, d]; int32 `cu_seqlens`, document i being the tokens from cu_seqlens[i] up
        to cu_seqlens[i + 1]. Causal; with a `window` a token sees only that many tokens, itself included.
        """

    def attention_ranges(
        self, q: Tensor, k: Tensor, v: Tensor, queries: Tensor, pieces: Tensor, ranges: Tensor, window: int | None
    ) -> Tensor:
        """Return softmax(q k^T / sqrt(d)) v [T, H, d] of groups of queries, each of which sees some rows of k, v [S, K, d].

        Contiguous tensors; int32 `queries` and `pieces` [groups + 1], int64 `ranges` [pieces, 2]. Group i has the queries from
        queries[i] up to queries[i + 1]; its keys are the rows from start up to end of the `ranges` from pieces[i] up to
        pieces[i + 1], one range behind the other. Its last query sees all of them, the one before it one less, and so on; with
        a `window` only the last of what it sees. At most 64 heads share a key head.
        """

    def attention_backward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        log_sums: Tensor,
        grad: Tensor,
        cu_seqlens: Tensor,
        window: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of q, k and v, from what `attention` took and returned and the gradient of `out`."""

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        """Return silu(gate) * up."""

    def swiglu_backward(self, gate: Tensor, up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of gate and up."""

    def rotate(self, heads: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> Tensor:
        """Return `heads` [T, H, d] rotated by the angles of `cos` and `sin` [T, 1, d / 2], or by the opposite ones."""

    def cross_entropy_(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return -log softmax(logits)[labels], fp32 [rows]; contiguous `logits` become its gradient by them, in place.

        Raises IndexError for a label that is not a column.
        """

    def nf4_largest(self, matrix: Tensor) -> Tensor:
        """Return the largest absolute value of each block of the contiguous `matrix` [rows, columns], fp32 [rows, blocks]."""

    def nf4_codes(self, matrix: Tensor, largest: Tensor, middles: Tensor, columns: range) -> Tensor:
        """Return the codes of some columns of `matrix`, two in a byte, uint8 [rows, half of the columns, rounded up].

        `largest` is what `nf4_largest` returned, `middles` are those between neighboring constants.
        """

    def nf4_numbers_(
        self,
        out: Tensor,
        codes: Tensor,
        scales: Tensor,
        groups: Tensor,
        constants: Tensor,
        *,
        begins: int,
        first_block: int,
        row_blocks: int,
    ) -> None:
        """Fill the contiguous `out` [rows, columns] with what codes, scales and groups mean (`kernels.nf4.Packed`).

        `begins` is the place of the first column in its block, `first_block` that of the first block in its group, and
        `row_blocks` the number of blocks in a row of the whole matrix.
        """


class Differentiable(Protocol):
    """Fused steps through which gradients pass. They may overwrite what they take: in the forward or in the backward pass."""

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        """Return silu(gate) * up."""

    def rotate(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Return `q` [T, H, d] and `k` [T, K, d] rotated by the angles of `cos` and `sin` [T, 1, d / 2]."""


class Matmul(Protocol):
    """A product of two matrices."""

    def __call__(self, a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
        """Return a @ b, [n, m] for a [n, k] and b [k, m], in the contiguous `out` if that is given."""


def kernels_for(*tensors: Tensor) -> Kernels | None:
    """Return the kernels that take these tensors (all of one dtype, on one device), None where torch's operations are used."""
    return cpu if cpu.supports(*tensors) else None


def norms_for(*tensors: Tensor) -> Norms | None:
    """Return the norms that take these tensors, None where torch's separate operations are used."""
    if cpu.supports(*tensors):
        return cpu
    return cuda if cuda.takes(*tensors) else None


def liger_for(*tensors: Tensor) -> Differentiable | None:
    """Return Liger's kernels where they take these tensors, None where `kernels_for` or torch's operations are used."""
    usable = cuda.takes(*tensors) and liger.fits(tensors[0].shape[-1]) and liger.on_device(tensors[0].device).works
    return liger if usable else None


def matmul_for(a: Tensor, b: Tensor) -> Matmul | None:
    """Return the product that is faster than torch's for a [n, k] and b [k, m] or its transpose, None where torch's is used."""
    if cpu.prefers_own_matmul(a, b):
        return cpu.matmul
    return cpu.matmul_in_fp32 if cpu.prefers_fp32_matmul(a, b) else None


def dtype_of_products(x: Tensor) -> torch.dtype:
    """Return the dtype in which matrices like `x` [n, k] are multiplied: fp32 where that is faster than bf16."""
    return torch.float32 if cpu.prefers_fp32_matmul(x, x) else x.dtype
