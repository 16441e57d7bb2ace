"""Forward and backward over a rank's micro-batches, with or without pipeline stages.

What is differentiated is sum(weight * nll) / (sum of weights of the global batch), so gradients only have to be added up over
micro-batches and ranks. FSDP divides its sum by dp; the loss is multiplied by dp beforehand to undo that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from medsft.core.engine.batches import MicroBatch, RankBatch
from medsft.core.engine.loss import weighted_nll
from medsft.core.engine.mesh import Mesh
from medsft.core.engine.model import Decoder
from medsft.core.engine.sharding import gather_tokens, head_rows, vocab_shard


@dataclass(slots=True)
class StepSums:
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


class Stepper(Protocol):
    """Runs the micro-batches of a batch."""

    def train(self, batch: RankBatch, scales: Sequence[float]) -> StepSums:
        """Add the gradients of `scale * sum(weight * nll)` of each micro-batch to the masters'."""

    def evaluate(self, batch: RankBatch) -> StepSums:
        """Return the sums without gradients."""


@dataclass(frozen=True, slots=True)
class LossHead:
    """The end of the network: from hidden states to the weighted loss of one micro-batch."""

    decoder: Decoder
    vocab_size: int
    """Rows of the table beyond this are padding and take no part."""
    mesh: Mesh

    def __call__(self, hidden: Tensor, micro: MicroBatch, sums: StepSums, scale: float) -> Tensor:
        """Return scale * sum(weight * nll), differentiable, and add what it is made of to `sums`."""
        rows = head_rows(self.decoder)
        shard = vocab_shard(self.decoder, self.mesh)
        tokens = gather_tokens(hidden)
        result = weighted_nll(tokens, rows, micro.labels, micro.weights, vocab_size=self.vocab_size, shard=shard)
        loss = result.loss * scale
        if self.mesh.tp_rank == 0:
            self._add(sums, result.nll, result.correct, micro, float(loss.detach()))
        return loss

    @staticmethod
    def _add(sums: StepSums, nll: Tensor, correct: Tensor, micro: MicroBatch, loss: float) -> None:
        sums.loss += loss
        on_answers = float((nll * micro.answer).sum(dtype=torch.float64))
        sums.answer_nll += on_answers
        sums.other_nll += float(nll.sum(dtype=torch.float64)) - on_answers
        sums.correct += int((correct & micro.answer).sum())
        if not torch.isfinite(torch.tensor(loss)):
            sums.bad_documents += micro.documents


@dataclass(frozen=True, slots=True)
class WholeModel:
    """A stepper for a rank that holds all layers."""

    decoder: Decoder
    head: LossHead
    mesh: Mesh

    def train(self, batch: RankBatch, scales: Sequence[float]) -> StepSums:
        """See `Stepper.train`."""
        sums = StepSums()
        last = len(batch.micro_batches) - 1
        for index, (micro, scale) in enumerate(zip(batch.micro_batches, scales, strict=True)):
            self._synchronise(index == last)
            micro = micro.to(self.mesh.device)
            loss = self.head(self.decoder(micro.tokens, micro.stream), micro, sums, scale)
            (loss * self.mesh.layout.dp).backward()
        return sums

    @torch.no_grad()
    def evaluate(self, batch: RankBatch) -> StepSums:
        """See `Stepper.evaluate`."""
        sums = StepSums()
        for micro in batch.micro_batches:
            micro = micro.to(self.mesh.device)
            self.head(self.decoder(micro.tokens, micro.stream), micro, sums, 1.0)
        return sums

    def _synchronise(self, last: bool) -> None:
        """Let FSDP reduce gradients and free gathered weights after the last micro-batch only."""
        if isinstance(self.decoder, FSDPModule):
            self.decoder.set_is_last_backward(last)
            self.decoder.set_requires_gradient_sync(last)
            self.decoder.set_reshard_after_backward(last)
