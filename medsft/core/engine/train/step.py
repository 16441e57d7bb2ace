"""Forward and backward over a rank's micro-batches, with or without pipeline stages.

What is differentiated is sum(weight * nll) / (sum of weights of the global batch), so gradients only have to be added up over
micro-batches and ranks. FSDP divides its sum by dp; the loss is multiplied by dp beforehand to undo that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.distributed.fsdp import FSDPModule

from medsft.core.engine.nn.model import Decoder
from medsft.core.engine.parallel.mesh import Mesh
from medsft.core.engine.train.batches import RankBatch
from medsft.core.engine.train.head import LossHead, LossTotals


class Executor(Protocol):
    """Runs the micro-batches of a batch."""

    def train(self, batch: RankBatch, scales: Sequence[float]) -> LossTotals:
        """Add the gradients of `scale * sum(weight * nll)` of each micro-batch to the masters'."""

    def validate(self, batch: RankBatch) -> LossTotals:
        """Return the sums without gradients."""


@dataclass(frozen=True, slots=True)
class SingleStage:
    """An executor for a rank that holds all layers."""

    decoder: Decoder
    head: LossHead
    mesh: Mesh
    reshard: bool = False
    """Whether data-parallel ranks gather weights for each pass, see `sharding.shard_data_parallel`."""

    def train(self, batch: RankBatch, scales: Sequence[float]) -> LossTotals:
        """See `Executor.train`."""
        sums = LossTotals.zeros(self.mesh.device)
        last = len(batch.micro_batches) - 1
        for index, (micro, scale) in enumerate(zip(batch.micro_batches, scales, strict=True)):
            self._synchronize(index == last)
            micro = micro.to(self.mesh.device)
            loss = self.head(self.decoder(micro.tokens, micro.sequences), micro, sums, scale)
            (loss * self.mesh.layout.dp).backward()
        return sums

    @torch.no_grad()
    def validate(self, batch: RankBatch) -> LossTotals:
        """See `Executor.validate`."""
        sums = LossTotals.zeros(self.mesh.device)
        for micro in batch.micro_batches:
            micro = micro.to(self.mesh.device)
            self.head(self.decoder(micro.tokens, micro.sequences), micro, sums, 1.0)
        return sums

    def _synchronize(self, last: bool) -> None:
        """Let FSDP reduce gradients and free gathered weights after the last micro-batch only."""
        if isinstance(self.decoder, FSDPModule):
            self.decoder.set_is_last_backward(last)
            self.decoder.set_requires_gradient_sync(last)
            # Frozen weights are not kept from one micro-batch to the next either, see `sharding.shard_frozen_layers`.
            self.decoder.set_reshard_after_backward(last or self.reshard or self.decoder.adapter is not None)
