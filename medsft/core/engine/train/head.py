"""The end of the network: from hidden states to the weighted loss of a micro-batch, and the sums that are reported."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate

from medsft.core.engine.nn.dtensor import local_part, local_range
from medsft.core.engine.nn.loss import VocabShard, weighted_nll
from medsft.core.engine.nn.model import Decoder
from medsft.core.engine.parallel.mesh import Mesh
from medsft.core.engine.train.batches import MicroBatch


@dataclass(slots=True)
class LossTotals:
    """What the micro-batches of one rank added up to. Only the last pipeline stage has anything but zeros."""

    loss: float = 0.0
    """This rank's share of the loss of the global batch."""
    answer_nll: float = 0.0
    """Sum of -log p over labels of answers, in nats."""
    other_nll: float = 0.0
    """The same over the other labels whose weight is not 0."""
    correct: int = 0
    """Answer labels that were the most likely token; counted in evaluation only."""
    bad_documents: tuple[int, ...] = ()
    """Documents of the micro-batches whose loss was not finite."""


@dataclass(frozen=True, slots=True)
class LossHead:
    """The end of the network: from hidden states to the weighted loss of one micro-batch."""

    decoder: Decoder
    vocab_size: int
    """Rows of the table beyond this are padding and take no part."""
    mesh: Mesh

    def __call__(self, hidden: Tensor, micro: MicroBatch, sums: LossTotals, scale: float) -> Tensor:
        """Return scale * sum(weight * nll), differentiable, and add what it is made of to `sums`."""
        rows = head_rows(self.decoder)
        shard = vocab_shard(self.decoder, self.mesh)
        tokens, trained = gather_tokens(hidden), self.decoder.trained_head_rows()
        result = weighted_nll(
            tokens, rows, micro.labels, micro.weights, vocab_size=self.vocab_size, shard=shard, trained=trained
        )
        loss = result.loss * scale
        if self.mesh.tp_rank == 0:
            self._add(sums, result.nll, result.correct, micro, float(loss.detach()))
        return loss

    @staticmethod
    def _add(sums: LossTotals, nll: Tensor, correct: Tensor, micro: MicroBatch, loss: float) -> None:
        sums.loss += loss
        on_answers = float((nll * micro.answer).sum(dtype=torch.float64))
        sums.answer_nll += on_answers
        sums.other_nll += float(nll.sum(dtype=torch.float64)) - on_answers
        sums.correct += int((correct & micro.answer).sum())
        if not torch.isfinite(torch.tensor(loss)):
            sums.bad_documents += micro.documents


def gather_tokens(hidden: Tensor) -> Tensor:
    """Return the hidden states of all tokens [T, h] on each tensor-parallel rank.

    Each rank's loss sees its own rows of the vocabulary only, so the gradients that come back are parts of a sum.
    """
    if not isinstance(hidden, DTensor):
        return hidden
    return hidden.redistribute(placements=(Replicate(),)).to_local(grad_placements=(Partial(),))


def head_rows(decoder: Decoder) -> Tensor:
    """Return this rank's rows [V / tp, h] of the output projection, as a plain tensor that passes its gradient on."""
    return local_part(decoder.head_weight())


def vocab_shard(decoder: Decoder, mesh: Mesh) -> VocabShard | None:
    """Return which rows of the vocabulary `head_rows` are, or None where they are all of them."""
    if mesh.layout.tp == 1:
        return None
    (first, *_), _ = local_range(decoder.head_weight())
    return VocabShard(first, mesh.devices["tp"].get_group())
