"""Low-rank adapters (LoRA, Hu et al. 2021) of a model: which matrices get one, their names and shapes. No torch.

An adapter of a matrix W [out, in] is a pair A [rank, in], B [out, rank]: the layer computes x W^T + scaling * (x A^T) B^T.
The pair of `model.layers.0.self_attn.q_proj.weight` is `model.layers.0.self_attn.q_proj.lora_A.weight` and `...lora_B.weight`:
PEFT's names without its prefix `base_model.model.`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from medsft.core.models.config import ModelConfig

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
TARGETS = ATTENTION + MLP
"""The linear layers of a decoder layer, in the order of the forward pass."""
TARGET_GROUPS = {"all": TARGETS, "attention": ATTENTION, "mlp": MLP}
A_SUFFIX, B_SUFFIX = ".lora_A.weight", ".lora_B.weight"
TRAINED_ROWS = {"model.embed_tokens.weight": "model.embed_tokens.trained_rows", "lm_head.weight": "lm_head.trained_rows"}
"""By the name of a table of tokens, the name of those of its rows that are trained beside an adapter: the rows of tokens that
the base model did not have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSpec:
    """What an adapter is made of."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    """Names out of `TARGETS`, in its order."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) (Kalajdzievski 2023), not by alpha / rank."""

    @property
    def scaling(self) -> float:
        """The factor of (x A^T) B^T."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def shapes(self, model: ModelConfig) -> Iterator[tuple[str, tuple[int, int]]]:
        """Yield (name, full shape) of every A and B for `model`, in the order of the forward pass."""
        for name, shape in model.parameter_shapes():
            module = name.removesuffix(".weight")
            if module != name and module.rpartition(".")[2] in self.targets:
                yield module + A_SUFFIX, (self.rank, shape[1])
                yield module + B_SUFFIX, (shape[0], self.rank)
