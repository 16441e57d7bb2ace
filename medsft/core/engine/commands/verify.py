"""Compare two checkpoints by what they compute: the logits of the same tokens, one layer in memory at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from medsft.core.engine.formats.source import WeightSource
from medsft.core.engine.formats.vocabulary import BLOCK_ROWS
from medsft.core.engine.nn.attention import PackedSequences
from medsft.core.engine.nn.model import Decoder

TOKENS = 64


@torch.no_grad()
def logit_difference(before: WeightSource, after: WeightSource) -> float:
    """Return the largest difference of a logit over `TOKENS` fixed tokens, in fp32; ids that only one has are left out.

    It is NaN where logits of either are not finite.
    """
    vocab = min(before.config.vocab_size, after.config.vocab_size)
    tokens = torch.randint(vocab, (TOKENS,), generator=torch.Generator().manual_seed(0))
    hidden = [_hidden(source, tokens) for source in (before, after)]
    largest = torch.zeros(())
    for start in range(0, vocab, BLOCK_ROWS):
        rows = slice(start, min(start + BLOCK_ROWS, vocab))
        first, second = (h @ _head(source, rows).T for h, source in zip(hidden, (before, after), strict=True))
        largest = torch.maximum(largest, (first - second).abs().max())  # keeps a NaN, which `max` may drop
    return float(largest)


def _hidden(source: WeightSource, tokens: Tensor) -> Tensor:
    """Return the last hidden states [T, hidden], computed with each layer loaded in turn."""
    config = source.config
    sequences = PackedSequences.of([len(tokens)])
    hidden = torch.cat([source.read("model.embed_tokens.weight", (slice(int(i), int(i) + 1),)) for i in tokens]).float()
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
