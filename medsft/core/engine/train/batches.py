"""From (iteration, rank) to the token streams a rank computes. Every rank derives them alone; nothing is broadcast.

    SampleOrder -> documents of the global batch -> dealt to ranks and micro-batches by length -> token streams

Each rank knows the weights of the whole global batch, so the loss can be divided by their sum before anything is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from medsft.core.data.tokenizers.template import Role
from medsft.core.engine.nn.attention import PackedSequences
from medsft.core.engine.nn.transfer import to_device
from medsft.core.planning.order import deal_in_order, deal_to_ranks
from medsft.core.planning.selection import Split

_FILLER_LENGTH = 128
"""Filler is cut into pieces of this many tokens, so that attention over it costs little."""


@dataclass(frozen=True, slots=True)
class ScoredTokens:
    """Tokens of which log p is asked, each by itself: the options of questions."""

    rows: Tensor
    """int64 [S]: row of the stream that predicts each of them."""
    labels: Tensor
    """int64 [S]"""
    options: Tensor
    """int64 [S], on the CPU: the option that each is a part of."""

    def to(self, device: torch.device) -> ScoredTokens:
        """Return them for a stream on another device."""
        return replace(self, rows=to_device(self.rows, device), labels=to_device(self.labels, device))


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Some documents as one token stream of T tokens."""

    documents: tuple[int, ...]
    """Numbers in the set, to name them when something goes wrong."""
    tokens: Tensor
    """int64 [T]"""
    labels: Tensor
    """int64 [T]"""
    weights: Tensor
    """float32 [T]; 0 on filler."""
    answer: Tensor
    """bool [T]: the label belongs to an answer that is trained on."""
    weighted: Tensor
    """int64, ascending: the tokens whose weight is not 0."""
    sequences: PackedSequences
    weight_sum: float
    scored: ScoredTokens | None = None
    """Of a stream of questions, which has no weights."""

    def to(self, device: torch.device) -> MicroBatch:
        """Return the micro-batch on another device. Nothing waits until it is there."""
        if device.type == "cpu":
            return self
        order = self.sequences
        return replace(
            self,
            tokens=to_device(self.tokens, device),
            labels=to_device(self.labels, device),
            weights=to_device(self.weights, device),
            answer=to_device(self.answer, device),
            weighted=to_device(self.weighted, device),
            sequences=replace(
                order, position_ids=to_device(order.position_ids, device), cu_seqlens=to_device(order.cu_seqlens, device)
            ),
            scored=self.scored.to(device) if self.scored else None,
        )


@dataclass(frozen=True, slots=True)
class RankBatch:
    """What one rank does in one iteration, and what it must know of the rest."""

    micro_batches: tuple[MicroBatch, ...]
    weight_sum: float
    """Of all labels of the global batch, on every rank."""
    tokens: int
    """Inputs of the global batch, without filler."""
    supervised_tokens: int
    """Labels of the global batch that belong to answers that are trained on."""


@dataclass(frozen=True, slots=True)
class Batcher:
    """Builds the batches of one data-parallel rank."""

    split: Split
    loss_mask: float
    """Weight of labels that are not an answer's."""
    dp: int
    dp_rank: int
    micro_batch: int
    multiple_of: int = 1
    """Streams are filled up to a multiple of this (tensor parallel splits them)."""
    fixed_tokens: int | None = None
    """Streams are filled up to exactly this (pipeline stages exchange tensors of one shape)."""
    num_micro_batches: int | None = None
    """Fewer are made up to this many by empty ones (a pipeline's schedule has a fixed number)."""
    in_order: bool = False
    """Deal as the original does, without regard to lengths."""

    def batch(self, iteration: int) -> RankBatch:
        """Return this rank's part of an iteration counted from 0."""
        return self.build(self.split.order.batch(iteration))

    def build(self, numbers: np.ndarray) -> RankBatch:
        """Return this rank's part of a global batch of the documents at these positions of the subset."""
        lengths = self.split.subset.num_labels[numbers]
        answers = sum(int(np.count_nonzero(self._is_answer(int(number)))) for number in numbers)
        tokens = int(lengths.sum())
        mine = self._deal(lengths)[self.dp_rank]
        mine += [[]] * max(0, (self.num_micro_batches or 0) - len(mine))
        in_answer, elsewhere = self._loss_weights()
        return RankBatch(
            micro_batches=tuple(self._micro_batch([int(numbers[i]) for i in part]) for part in mine),
            weight_sum=answers * in_answer + (tokens - answers) * elsewhere,
            tokens=tokens,
            supervised_tokens=answers,
        )

    def _pairs(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (inputs, labels, answer) of one document, each [labels]; see `_is_answer`."""
        subset = self.split.subset
        tokens = self.split.data.tokens(int(subset.indices[number]))[subset.span(number)].astype(np.int64)
        return tokens[:-1], tokens[1:], self._is_answer(number)

    def _is_answer(self, number: int) -> np.ndarray:
        """Return whether each label of one document is trained on as an answer is, bool [labels]."""
        subset = self.split.subset
        return subset.trained(number, self.split.data.roles(int(subset.indices[number])))

    def _deal(self, lengths: np.ndarray) -> list[list[list[int]]]:
        if self.in_order:
            return deal_in_order(len(lengths), dp=self.dp, micro_batch=self.micro_batch)
        return deal_to_ranks(lengths, dp=self.dp, micro_batch=self.micro_batch)

    def _micro_batch(self, numbers: Sequence[int]) -> MicroBatch:
        triples = [self._pairs(number) for number in numbers]
        lengths = [len(inputs) for inputs, _, _ in triples if len(inputs)]
        filler = self._filler(sum(lengths))
        zeros = np.zeros(filler, np.int64)
        answer = np.concatenate([*(a for _, _, a in triples), zeros.astype(bool)])
        in_answer, elsewhere = self._loss_weights()
        weights = np.where(answer, np.float32(in_answer), np.float32(elsewhere))
        weights[len(weights) - filler :] = 0
        pieces = filler_lengths(filler)
        return MicroBatch(
            documents=tuple(int(self.split.subset.indices[number]) for number in numbers),
            tokens=torch.from_numpy(np.concatenate([*(t for t, _, _ in triples), zeros])),
            labels=torch.from_numpy(np.concatenate([*(label for _, label, _ in triples), zeros])),
            weights=torch.from_numpy(weights),
            answer=torch.from_numpy(answer),
            weighted=torch.from_numpy(np.flatnonzero(weights)),
            sequences=PackedSequences.of([*lengths, *pieces]),
            weight_sum=float(weights.sum(dtype=np.float64)),
        )

    def _loss_weights(self) -> tuple[float, float]:
        """Return the weight of a label in an answer, and of any other."""
        return Role.ANSWER.loss_weight(self.loss_mask), Role.QUESTION.loss_weight(self.loss_mask)

    def _filler(self, tokens: int) -> int:
        if self.fixed_tokens is not None:
            return self.fixed_tokens - tokens
        if tokens == 0:  # a rank without a document (the end of a validation set) still takes part in the collectives
            return self.multiple_of
        return -tokens % self.multiple_of

    def sequential_batches(self) -> Iterator[np.ndarray]:
        """Yield the numbers of all documents in their order, as global batches; the last may be smaller."""
        count, size = len(self.split.subset), self.split.order.global_batch
        for start in range(0, count, size):
            yield np.arange(start, min(start + size, count))

    def largest_micro_batch(self, batches: Iterable[np.ndarray]) -> int:
        """Return the most tokens in any micro-batch of any rank over these global batches, without reading a token."""
        largest = 0
        for numbers in batches:
            lengths = self.split.subset.num_labels[numbers]
            largest = max(largest, *(int(lengths[part].sum()) for rank in self._deal(lengths) for part in rank))
        return largest


def filler_lengths(filler: int) -> list[int]:
    """Return into which sequences this many tokens of filler are cut."""
    return [min(_FILLER_LENGTH, filler - start) for start in range(0, filler, _FILLER_LENGTH)]


def prefetch(batcher: Batcher, iterations: range) -> Iterator[RankBatch]:
    """Yield the batches of `iterations`, each built while the one before it is computed."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as pool:
        upcoming = None
        for iteration in iterations:
            current = upcoming or pool.submit(batcher.batch, iteration)
            upcoming = pool.submit(batcher.batch, iteration + 1) if iteration + 1 in iterations else None
            yield current.result()
