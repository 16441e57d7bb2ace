"""The end of the network: from hidden states to the weighted loss of a micro-batch, and the sums that are reported."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from medsft.core.engine.nn.dtensor import local_part, local_range
from medsft.core.engine.nn.loss import VocabShard, weighted_nll
from medsft.core.engine.nn.model import Decoder
from medsft.core.engine.parallel.mesh import Mesh
from medsft.core.engine.parallel.tokens import gather_tokens
from medsft.core.engine.train.batches import MicroBatch, ScoredTokens


@dataclass(slots=True)
class LossTotals:
    """What the micro-batches of one rank added up to, each sum fp64 and on its device: adding to them waits for no GPU.

    Only the last pipeline stage has anything but zeros.
    """

    loss: Tensor
    """This rank's share of the loss of the global batch."""
    answer_nll: Tensor
    """Sum of -log p over labels of answers, in nats."""
    other_nll: Tensor
    """The same over the other labels whose weight is not 0."""
    correct: Tensor
    """Answer labels that were the most likely token; counted in evaluation only."""
    losses: list[tuple[tuple[int, ...], Tensor]] = field(default_factory=list)
    """Of each micro-batch its documents and its share of the loss."""
    scored: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    """Of streams of questions: of some tokens each the option that it is a part of, -log p, and whether it is the likeliest."""

    @classmethod
    def zeros(cls, device: torch.device) -> LossTotals:
        """Return sums of nothing."""
        loss, answer_nll, other_nll, correct = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(4))
        return cls(loss, answer_nll, other_nll, correct)

    def add(self, micro: MicroBatch, loss: Tensor, nll: Tensor, correct: Tensor) -> None:
        """Add a micro-batch: its share of the loss, and of each token [T] the nll and whether the label was the likeliest."""
        on_answers = (nll * micro.answer).sum(dtype=torch.float64)
        self.loss += loss
        self.answer_nll += on_answers
        self.other_nll += nll.sum(dtype=torch.float64) - on_answers
        self.correct += (correct & micro.answer).sum()
        self.losses.append((micro.documents, loss))

    def bad_documents(self) -> list[int]:
        """Return the documents of the micro-batches whose loss was not finite. This waits for a GPU."""
        return [document for documents, loss in self.losses if not bool(loss.isfinite()) for document in documents]


@dataclass(frozen=True, slots=True)
class LossHead:
    """The end of the network: from hidden states to the weighted loss of one micro-batch."""

    decoder: Decoder
    vocab_size: int
    """Rows of the table beyond this are padding and take no part."""
    mesh: Mesh

    def __call__(self, hidden: Tensor, micro: MicroBatch, sums: LossTotals, scale: float) -> Tensor:
        """Return scale * sum(weight * nll), differentiable, and add what it is made of to `sums`."""
        if micro.scored is not None:
            return self._score(hidden, micro.scored, sums)
        rows = head_rows(self.decoder)
        shard = vocab_shard(self.decoder, self.mesh)
        tokens, trained = self._all_tokens(hidden), self.decoder.trained_head_rows()
        result = weighted_nll(
            tokens,
            rows,
            micro.labels,
            micro.weights,
            vocab_size=self.vocab_size,
            shard=shard,
            trained=trained,
            rows=micro.weighted,
        )
        loss = result.loss * scale
        if self.mesh.tp_rank == 0:
            sums.add(micro, loss.detach(), result.nll, result.correct)
        return loss

    def _score(self, hidden: Tensor, scored: ScoredTokens, sums: LossTotals) -> Tensor:
        """Add -log p of each scored token to `sums`, and return the sum of all: a pipeline's schedule wants a loss."""
        result = weighted_nll(
            self._all_tokens(hidden).index_select(0, scored.rows),
            head_rows(self.decoder),
            scored.labels,
            torch.ones_like(scored.labels, dtype=torch.float32),
            vocab_size=self.vocab_size,
            shard=vocab_shard(self.decoder, self.mesh),
            trained=self.decoder.trained_head_rows(),
            rows=torch.arange(len(scored.labels), device=scored.labels.device),
        )
        if self.mesh.tp_rank == 0:
            sums.scored.append((scored.options, result.nll, result.correct))
        return result.loss

    def _all_tokens(self, hidden: Tensor) -> Tensor:
        """Return the hidden states of all tokens [T, h] on each tensor-parallel rank.

        Each rank's loss sees its own rows of the vocabulary only, so the gradients that come back are parts of a sum.
        """
        return hidden if self.mesh.layout.tp == 1 else gather_tokens(hidden, self.mesh.devices["tp"].get_group())


def head_rows(decoder: Decoder) -> Tensor:
    """Return this rank's rows [V / tp, h] of the output projection, as a plain tensor that passes its gradient on."""
    return local_part(decoder.head_weight())


def vocab_shard(decoder: Decoder, mesh: Mesh) -> VocabShard | None:
    """Return which rows of the vocabulary `head_rows` are, or None where they are all of them."""
    if mesh.layout.tp == 1:
        return None
    (first, *_), _ = local_range(decoder.head_weight())
    return VocabShard(first, mesh.devices["tp"].get_group())
