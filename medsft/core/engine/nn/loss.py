"""Cross entropy of the tokens that count, without ever holding their whole logits.

The logits of N tokens over a vocabulary V are the largest tensor of a training step (N x V, in fp32 several times over). Here
they exist for a chunk of rows at a time, and rows of weight 0 are not projected at all. Because the loss is the end of the
network, its gradients are computed in the forward pass, while the chunk is at hand; the backward pass only scales them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from medsft.core.engine.kernels import kernels_for
from medsft.core.engine.nn.linear import add_product_in_fp32_, matmul
from medsft.core.engine.nn.trained_rows import HeldRows
from medsft.core.planning.memory import LOGITS_BYTES


@dataclass(frozen=True, slots=True)
class TokenLosses:
    """What `weighted_nll` returns. Everything but `loss` is detached."""

    loss: Tensor
    """fp32 scalar, differentiable: sum over tokens of weight * nll, in nats."""
    nll: Tensor
    """fp32 [T]: -log p(label) of each token, 0 where the weight is 0."""
    correct: Tensor
    """bool [T]: the label is the most likely token; False where the weight is 0, and everywhere while training."""


@dataclass(frozen=True, slots=True)
class VocabShard:
    """Which rows of the output projection this tensor-parallel rank holds; its `head_weight` is only those."""

    first_row: int
    group: dist.ProcessGroup


def weighted_nll(
    hidden: Tensor,
    head_weight: Tensor,
    labels: Tensor,
    weights: Tensor,
    *,
    vocab_size: int,
    shard: VocabShard | None = None,
    chunk_rows: int | None = None,
    trained: HeldRows | None = None,
    rows: Tensor | None = None,
) -> TokenLosses:
    """Return sum(weights * -log softmax(hidden @ head_weight.T)[labels]) and what it is made of.

    `hidden` [T, h], `head_weight` [V, h], `labels` int64 [T] (any value where the weight is 0), `weights` [T] of at least 0.
    Rows of the output projection from `vocab_size` on are padding and take no part. `chunk_rows` bounds how many tokens are
    projected at a time (default: `planning.memory.LOGITS_BYTES` of logits). The softmax is in fp32 whatever the dtype of the
    weights. Of a `head_weight` that is frozen, the rows `trained` get a gradient all the same. `rows` are the tokens whose
    weight is not 0, int64 and ascending: looking for them makes the host wait for a GPU, so a caller who has them gives them.

    With a `shard`, all ranks of its group call this with the same arguments but for their rows of the projection. All get the
    same sums; the gradient of `hidden` is each rank's part of a sum over the group.
    """
    rows = weights.nonzero().squeeze(1) if rows is None else rows
    chunk = chunk_rows or max(1, LOGITS_BYTES[hidden.device.type] // (4 * vocab_size))
    first_row = shard.first_row if shard else 0
    table = _Table(min(max(vocab_size - first_row, 0), len(head_weight)), first_row, shard.group if shard else None)
    rows_trained = None if trained is None else trained.trained
    differentiated = (hidden, head_weight) if rows_trained is None else (hidden, head_weight, rows_trained)
    training = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in differentiated)
    loss, row_nll, row_correct = _WeightedNLL.apply(
        hidden.index_select(0, rows),
        head_weight,
        labels[rows],
        weights[rows].float(),
        table,
        chunk,
        training,
        rows_trained,
        trained,
    )
    nll = torch.zeros(len(labels), device=hidden.device).index_copy(0, rows, row_nll)
    correct = torch.zeros(len(labels), dtype=torch.bool, device=hidden.device).index_copy(0, rows, row_correct)
    return TokenLosses(loss, nll, correct)


class _WeightedNLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        labels: Tensor,
        weights: Tensor,
        table: _Table,
        chunk: int,
        training: bool,
        rows_trained: Tensor | None,
        trained: HeldRows | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        nll = torch.zeros(len(labels), device=hidden.device)
        correct = torch.zeros(len(labels), dtype=torch.bool, device=hidden.device)
        wanted = ctx.needs_input_grad[:2]
        columns = trained.numbers if trained is not None and ctx.needs_input_grad[7] else None
        single = 0 < len(labels) <= chunk
        grads = _Gradients.of(hidden, head, wanted, columns, single_chunk=single) if training else None
        for start in range(0, len(labels), chunk):
            part = slice(start, start + chunk)
            logits = table.logits(hidden[part], head)
            if grads is not None and table.group is None and (kernels := kernels_for(logits)):
                nll[part] = kernels.cross_entropy_(logits, labels[part])
                grads.add(part, logits, hidden, head, weights)
                continue
            if grads is None:
                correct[part] = table.most_likely(logits) == labels[part]
            log_p = table.log_softmax(logits)
            del logits
            nll[part] = -table.pick(log_p, labels[part])
            if grads is not None:
                error = table.subtract_one(log_p.exp_(), labels[part])
                grads.add(part, error.to(hidden.dtype), hidden, head, weights)
                del error
            del log_p  # or else it would be there beside the logits of the next chunk
        ctx.grads, ctx.trained = grads, trained
        ctx.mark_non_differentiable(nll, correct)
        return (weights * nll).sum(), nll, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grads, ctx.grads = ctx.grads, None
        hidden = None if grads.hidden is None else grads.hidden.mul_(grad_loss)
        head = None if grads.head is None else grads.head.mul_(grad_loss).to(grads.dtype)
        rows = None if grads.rows is None else ctx.trained.scatter(grads.rows.mul_(grad_loss))
        return hidden, head, None, None, None, None, None, rows, None


@dataclass(frozen=True, slots=True)
class _Table:
    """This rank's columns of the logits, and what has to be agreed on with the ranks that have the others."""

    columns: int
    """How many of the rows held here are in the vocabulary; the rest is padding."""
    first: int
    """Token of the first column."""
    group: dist.ProcessGroup | None

    def logits(self, hidden: Tensor, head: Tensor) -> Tensor:
        """Return [rows, columns]; a rank that holds nothing but padding has one column without any probability."""
        logits = matmul(hidden, head[: max(self.columns, 1)].T)
        return logits if self.columns else logits.fill_(torch.finfo(logits.dtype).min)

    def log_softmax(self, logits: Tensor) -> Tensor:
        """Return log p [rows, columns] in fp32 over the whole vocabulary."""
        log_p = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
        if self.group is None:
            return log_p
        own = logits[:, 0].float() - log_p[:, 0]  # log of the sum of exponentials over this rank's columns
        highest = self._all_reduce(own.clone(), dist.ReduceOp.MAX)
        total = highest + self._all_reduce((own - highest).exp(), dist.ReduceOp.SUM).log()
        return log_p.add_((own - total)[:, None])

    def most_likely(self, logits: Tensor) -> Tensor:
        """Return the token [rows] with the highest logit; of equal ones the first."""
        value, column = logits.max(dim=-1)
        token = column + self.first
        if self.group is None:
            return token
        highest = self._all_reduce(value.clone(), dist.ReduceOp.MAX)
        token = token.masked_fill(value < highest, torch.iinfo(token.dtype).max)
        return self._all_reduce(token, dist.ReduceOp.MIN)

    def pick(self, log_p: Tensor, labels: Tensor) -> Tensor:
        """Return log p [rows] of the labels, whichever rank holds them."""
        columns, here = self._columns_of(labels)
        picked = log_p.gather(1, columns[:, None]).squeeze(1) * here
        return self._all_reduce(picked, dist.ReduceOp.SUM)

    def subtract_one(self, p: Tensor, labels: Tensor) -> Tensor:
        """Subtract 1 from the probability of the labels in place: the gradient of the nll by the logits."""
        columns, here = self._columns_of(labels)
        return p.scatter_add_(1, columns[:, None], -here.to(p.dtype)[:, None])

    def _columns_of(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        columns = labels - self.first
        here = (columns >= 0) & (columns < self.columns)
        return columns * here, here

    def _all_reduce(self, values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        if self.group is not None:
            dist.all_reduce(values, op=operation, group=self.group)
        return values


@dataclass(slots=True)
class _Gradients:
    """Gradients of the loss, filled chunk by chunk; None for what needs none, as a frozen output projection."""

    hidden: Tensor | None
    head: Tensor | None
    rows: Tensor | None
    columns: Tensor | None
    """Of the logits, those whose rows of a frozen output projection are trained; `rows` are the gradients of these."""
    dtype: torch.dtype
    single_chunk: bool

    @classmethod
    def of(
        cls, hidden: Tensor, head: Tensor, wanted: tuple[bool, bool], columns: Tensor | None, *, single_chunk: bool
    ) -> _Gradients:
        """Allocate those that are `wanted`. Several chunks are added up in fp32; a single one is written to its final place."""
        for_hidden, for_head = wanted
        head_grad = None
        if for_head:
            head_grad = torch.empty_like(head) if single_chunk else torch.zeros_like(head, dtype=torch.float32)
        rows = None if columns is None else hidden.new_zeros(len(columns), hidden.shape[1], dtype=torch.float32)
        return cls(torch.empty_like(hidden) if for_hidden else None, head_grad, rows, columns, hidden.dtype, single_chunk)

    def add(self, part: slice, error: Tensor, hidden: Tensor, head: Tensor, weights: Tensor) -> None:
        """Add one chunk, given the gradient `error` [rows, columns] of each token's nll by its logits."""
        # The weight is multiplied into the narrow factor of each product, which saves a pass over [rows, columns].
        scale = weights[part, None].to(hidden.dtype)
        columns = error.shape[1]
        if self.hidden is not None:
            self.hidden[part] = matmul(error, head[:columns]) * scale
        if self.rows is not None:
            self.rows += error[:, self.columns].T.float() @ (hidden[part] * scale).float()
        if self.head is None:
            return
        if self.single_chunk:
            matmul(error.T, hidden * scale, self.head[:columns])
            self.head[columns:].zero_()
        else:
            add_product_in_fp32_(self.head[:columns], error.T, hidden[part] * scale)
