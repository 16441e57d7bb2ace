"""Pipeline stages: a 1F1B schedule (Narayanan et al. 2021) of torch.distributed.pipelining over our decoder.

Every stage builds the micro-batches itself, so only hidden states and their gradients travel. They must have one shape: streams
are filled up to the largest micro-batch of the run, and a short batch with empty micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from medsft.core.engine.nn.model import Decoder
from medsft.core.engine.parallel.mesh import Mesh
from medsft.core.engine.train.batches import MicroBatch, RankBatch
from medsft.core.engine.train.head import LossHead, LossTotals
from medsft.core.engine.train.step import Executor, SingleStage


class PipelineDecoder(Decoder):
    """A pipeline stage. The schedule calls it for one micro-batch after the other, and it takes them from `feed`.

    It is a decoder, and not a module around one, so that parameters keep their names and FSDP finds its root.
    """

    feed: Iterator[tuple[MicroBatch, float]] = iter(())
    """What of the current batch has not been computed: micro-batches and the factors of their losses, in their order. (A number
    that came with a micro-batch would be on the GPU, and the host would wait for all work before it to read it.)"""
    head: LossHead | None = None
    """Only on the last stage."""
    sums: LossTotals

    def forward(self, inputs: Tensor) -> Tensor:  # type: ignore[override]
        """Return the hidden states for the next stage, or on the last stage the scaled loss, [1].

        `inputs` are the previous stage's hidden states; the first stage takes its tokens from `feed`.
        """
        micro, scale = next(self.feed)
        hidden = super().forward(micro.tokens if self.first else inputs, micro.sequences)
        if self.head is None:
            return hidden
        return self.head(hidden, micro, self.sums, scale)[None]


class _Stage(PipelineStage):
    """A stage that gives gradients back also when it validates before it trains.

    Before torch 2.13 the first use of a stage decides whether hidden states that it receives take a gradient.
    """

    def _prepare_forward_infra(self, *arguments: Any, **keywords: Any) -> Any:
        before, self.has_backward = self.has_backward, True
        try:
            return super()._prepare_forward_infra(*arguments, **keywords)
        finally:
            self.has_backward = before


class Pipeline:
    """An executor for one stage of a pipeline. See `Executor`."""

    def __init__(self, decoder: PipelineDecoder, head: LossHead, mesh: Mesh, *, stream_tokens: int, dtype: torch.dtype) -> None:
        self._decoder, self._mesh = decoder, mesh
        self._is_last = mesh.is_last_stage
        decoder.head = head if self._is_last else None
        # Between projections a tensor-parallel rank has its part of the tokens only; that is what travels.
        shape = (stream_tokens // mesh.layout.tp, decoder.config.hidden_size)
        hidden = torch.empty(shape, dtype=dtype, device="meta", requires_grad=True)
        loss = torch.empty(1, dtype=torch.float32, device="meta", requires_grad=True)
        self._stage_arguments: dict[str, Any] = {
            "input_args": (torch.empty(1, dtype=torch.int64, device="meta"),) if mesh.is_first_stage else (hidden,),
            "output_args": (loss,) if self._is_last else (hidden,),
        }
        self._schedules: dict[int, Schedule1F1B] = {}

    def train(self, batch: RankBatch, scales: Sequence[float]) -> LossTotals:
        """See `Executor.train`."""
        self._prepare(batch, scales)
        self._schedule(len(batch.micro_batches)).step(*self._arguments(batch), **self._keywords(batch))
        return self._decoder.sums

    def validate(self, batch: RankBatch) -> LossTotals:
        """See `Executor.validate`."""
        self._prepare(batch, [1.0] * len(batch.micro_batches))
        with torch.no_grad():
            self._schedule(len(batch.micro_batches)).eval(*self._arguments(batch), **self._keywords(batch))
        return self._decoder.sums

    def _prepare(self, batch: RankBatch, scales: Sequence[float]) -> None:
        sent = [micro.to(self._mesh.device) for micro in batch.micro_batches]
        self._decoder.feed = zip(sent, scales, strict=True)
        self._decoder.sums = LossTotals.zeros(self._mesh.device)

    def _arguments(self, batch: RankBatch) -> tuple[Tensor, ...]:
        return (self._numbers(batch),) if self._mesh.is_first_stage else ()

    def _keywords(self, batch: RankBatch) -> dict[str, Any]:
        extra = {"target": self._numbers(batch)} if self._is_last else {}
        return {"return_outputs": False, **extra}

    def _numbers(self, batch: RankBatch) -> Tensor:
        """Return what the schedule divides among micro-batches in place of inputs and labels, which the stages have."""
        return torch.arange(len(batch.micro_batches), device=self._mesh.device)

    def _schedule(self, num_micro_batches: int) -> Schedule1F1B:
        if num_micro_batches not in self._schedules:
            stage = _Stage(
                self._decoder,
                self._mesh.pp_rank,
                self._mesh.layout.pp,
                self._mesh.device,
                group=self._mesh.devices.get_group("pp"),
                **self._stage_arguments,
            )
            dp = self._mesh.layout.dp  # FSDP divides its sum by it, see `step`
            self._schedules[num_micro_batches] = Schedule1F1B(
                stage, num_micro_batches, loss_fn=lambda loss, _: loss.sum() * dp, scale_grads=False
            )
        return self._schedules[num_micro_batches]


def make_executor(
    decoder: Decoder, head: LossHead, mesh: Mesh, stream_tokens: int, *, dtype: torch.dtype, reshard: bool = False
) -> Executor:
    """Return what runs this rank's part of a model; in a pipeline over streams of exactly `stream_tokens`."""
    if isinstance(decoder, PipelineDecoder):
        return Pipeline(decoder, head, mesh, stream_tokens=stream_tokens, dtype=dtype)
    return SingleStage(decoder, head, mesh, reshard)
