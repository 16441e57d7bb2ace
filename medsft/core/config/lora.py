"""Low-rank adapters (LoRA, Hu et al. 2021) of a model: which matrices get one, their names and shapes. No torch.

An adapter of a matrix W [out, in] is a pair A [rank, in], B [out, rank]: the layer computes x W^T + scaling * (x A^T) B^T.
The pair of `model.layers.0.self_attn.q_proj.weight` is `model.layers.0.self_attn.q_proj.lora_A.weight` and `...lora_B.weight`:
PEFT's names without its prefix `base_model.model.`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
TARGETS = ATTENTION + MLP
"""The linear layers of a decoder layer, in the order of the forward pass."""
TARGET_GROUPS = {"all": TARGETS, "attention": ATTENTION, "mlp": MLP}
A_SUFFIX, B_SUFFIX = ".lora_A.weight", ".lora_B.weight"
TRAINED_ROWS = {"model.embed_tokens.weight": "model.embed_tokens.trained_rows", "lm_head.weight": "lm_head.trained_rows"}
"""By the name of a table of tokens, the name of those of its rows that are trained beside an adapter: the rows of tokens that
the base model did not have."""

FULL, FULL_8BIT, LORA, QLORA = "full", "8-bit AdamW", "LoRA", "QLoRA"
FLAGS = {
    FULL: "--adapter none --optimizer adamw",
    FULL_8BIT: "--adapter none --optimizer adamw8bit",
    LORA: "--adapter lora",
    QLORA: "--adapter lora --base_precision nf4",
}
"""By the name of a kind of training, what asks for it. The first two train all weights."""


class Shaped(Protocol):
    """What has weights with names and shapes: `core.models.config.ModelConfig`."""

    def parameter_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield (Hugging Face name, full shape) of every parameter."""


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

    def shapes(self, model: Shaped) -> Iterator[tuple[str, tuple[int, int]]]:
        """Yield (name, full shape) of every A and B for `model`, in the order of the forward pass."""
        for name, shape in model.parameter_shapes():
            module = name.removesuffix(".weight")
            if module != name and module.rpartition(".")[2] in self.targets:
                yield module + A_SUFFIX, (self.rank, shape[1])
                yield module + B_SUFFIX, (shape[0], self.rank)


def kind_of(adapter: str, base_precision: str | None, optimizer: str) -> str:
    """Return the name of the kind of training that these options ask for, see `FLAGS`."""
    if adapter == "none":
        return FULL if optimizer == "adamw" else FULL_8BIT
    return QLORA if base_precision == "nf4" else LORA


def named_targets(text: str) -> tuple[str, ...]:
    """Return the names that `--lora_targets` lists, as they were typed; those of a group for its name."""
    names = (name.strip() for name in text.split(","))
    return tuple(target for name in names for target in TARGET_GROUPS.get(name, (name,)))


def targets_in(text: str) -> tuple[str, ...]:
    """Return the linear layers that `--lora_targets` names, in the order of `TARGETS`; `config.check` names all others."""
    named = named_targets(text)
    return tuple(target for target in TARGETS if target in named)
