"""What an adapter of a model is made of, by its place among the facts of a model; see `core.config.lora`."""

from medsft.core.config.lora import (
    A_SUFFIX,
    ATTENTION,
    B_SUFFIX,
    MLP,
    TARGET_GROUPS,
    TARGETS,
    TRAINED_ROWS,
    LoraSpec,
)

__all__ = ["ATTENTION", "A_SUFFIX", "B_SUFFIX", "MLP", "TARGETS", "TARGET_GROUPS", "TRAINED_ROWS", "LoraSpec"]
