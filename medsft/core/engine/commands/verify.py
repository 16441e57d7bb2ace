"""Compare two checkpoints by what they compute: the logits of the same tokens, one layer in memory at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medsft.core.engine.formats.source import WeightSource
from medsft.core.engine.formats.vocabulary import BLOCK_ROWS
from medsft.core.engine.nn.attention import PackedSequences
from medsft.core.engine.nn.model import Decoder
from medsft.core.host_memory import free_memory
from medsft.core.models.config import ModelConfig

TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitDifference:
    """How far the logits of two models are apart over the same tokens. NaN where logits of either are not finite."""

    mean: float
    """Of the absolute differences, over all tokens and the whole vocabulary."""
    largest: float
    tokens: int
    other_choices: int
    """Tokens after which the two models hold different tokens for the most likely one."""


def fits_in_memory(config: ModelConfig) -> bool:
    """Tell whether the weights of a model fit into the memory that is free, in fp32: a comparison then takes seconds."""
    return config.num_parameters() * torch.float32.itemsize < free_memory()


def logit_difference(before: WeightSource, after: WeightSource) -> float:
    """Return the largest difference of a logit over `TOKENS` fixed tokens, in fp32; ids that only one has are left out.

    It is NaN where logits of either are not finite.
    """
    return compare_random(before, after).largest


def compare_random(before: WeightSource, after: WeightSource) -> LogitDifference:
    """Compare the logits of `TOKENS` fixed tokens, in fp32; ids that only one has are left out."""
    vocab = min(before.config.vocab_size, after.config.vocab_size)
    tokens = torch.randint(vocab, (TOKENS,), generator=torch.Generator().manual_seed(0))
    return compare_logits(before, after, tokens, [TOKENS])


@torch.no_grad()
def compare_logits(before: WeightSource, after: WeightSource, tokens: Tensor, sizes: Sequence[int]) -> LogitDifference:
    """Compare the logits of documents of these `sizes` that lie end to end in `tokens`, in fp32.

    Ids that only one of the models has are left out.
    """
    sources = (before, after)
    vocab = min(source.config.vocab_size for source in sources)
    sequences = PackedSequences.of(sizes)
    hidden = [_hidden(source, tokens, sequences) for source in sources]
    largest, total = torch.zeros(()), torch.zeros((), dtype=torch.float64)
    best = [torch.full((len(tokens),), float("-inf")) for _ in sources]
    choice = [torch.zeros(len(tokens), dtype=torch.long) for _ in sources]
    for start in range(0, vocab, BLOCK_ROWS):
        rows = slice(start, min(start + BLOCK_ROWS, vocab))
        logits = [h @ _head(source, rows).T for h, source in zip(hidden, sources, strict=True)]
        difference = (logits[0] - logits[1]).abs()
        largest = torch.maximum(largest, difference.max())  # keeps a NaN, which `max` may drop
        total += difference.double().sum()
        for which, block in enumerate(logits):
            value, place = block.max(dim=1)
            choice[which] = torch.where(value > best[which], place + start, choice[which])
            best[which] = torch.maximum(value, best[which])
    return LogitDifference(
        mean=float(total) / (len(tokens) * vocab),
        largest=float(largest),
        tokens=len(tokens),
        other_choices=int((choice[0] != choice[1]).sum()),
    )


def _hidden(source: WeightSource, tokens: Tensor, sequences: PackedSequences) -> Tensor:
    """Return the last hidden states [T, hidden], computed with each layer loaded in turn."""
    config = source.config
    used, places = tokens.unique(return_inverse=True)
    rows = torch.cat([source.read("model.embed_tokens.weight", (slice(int(i), int(i) + 1),)) for i in used]).float()
    hidden = rows[places]
    for layer in range(config.num_layers):
        hidden = _layer(source, layer)(hidden, sequences)
    norm = source.read("model.norm.weight").float()
    scale = torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + config.norm_eps)
    return hidden * scale * norm


def _layer(source: WeightSource, layer: int) -> Decoder:
    with torch.device("meta"):
        decoder = Decoder(source.config, layers=range(layer, layer + 1), first=False, last=False)
    decoder.load_state_dict({name: source.read(name).float() for name, _ in decoder.named_parameters()}, assign=True)
    return decoder


def _head(source: WeightSource, rows: slice) -> Tensor:
    name = "model.embed_tokens.weight" if source.config.tie_embeddings else "lm_head.weight"
    return source.read(name, (rows,)).float()
