"""Validation: one full pass over the validation set, the same documents every time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from medsft.core.engine.parallel.mesh import Mesh
from medsft.core.engine.train.batches import Batcher
from medsft.core.engine.train.step import Executor


@dataclass(frozen=True, slots=True)
class Validation:
    """Measured over the answer tokens of the whole validation set."""

    loss: float
    """Mean -log p, in nats."""
    accuracy: float
    """Share of tokens that were the most likely one."""
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(min(self.loss, 700.0))


def validate(executor: Executor, batcher: Batcher, mesh: Mesh) -> Validation:
    """Return loss and accuracy on every document of the batcher's set, once each. Every rank must call it."""
    sums = torch.zeros(2, dtype=torch.float64, device=mesh.device)
    tokens = 0
    for numbers in batcher.sequential_batches():
        batch = batcher.build(numbers)
        part = executor.validate(batch)
        sums += torch.stack([part.answer_nll, part.correct])
        tokens += batch.supervised_tokens
    answer_nll, correct = mesh.sum(sums).tolist()
    return Validation(loss=answer_nll / max(1, tokens), accuracy=correct / max(1, tokens), tokens=tokens)
