"""Whether the documents fit into the positions that the base model is made for."""

from __future__ import annotations

from medsft.core.config.run_config import RunConfig
from medsft.core.models.config import ModelConfig
from medsft.core.planning.sets import PlannedSet
from medsft.errors import Problem


def check_context(config: RunConfig, model: ModelConfig, train: PlannedSet, val: PlannedSet | None) -> Problem | None:
    """Return what is wrong when a document is longer than the model's context, or None.

    What counts is the longest document that is used and not `--seq`, which only bounds it: a default that no document reaches
    asks for nothing of the model.
    """
    counted = [part for part in (train, val) if part is not None and part.exact] if train.exact else []
    longest = max((int(part.subset.num_labels.max()) for part in counted), default=0)
    if longest <= model.context:
        return None
    scaled = " with its rope scaling" if model.context != model.max_position_embeddings else ""
    return Problem(
        "--seq",
        f"the longest document takes {longest:,} positions, but the base model is made for {model.context:,}{scaled} "
        "(max_position_embeddings in its config.json)",
        f"Use --seq {model.context} with --truncate drop or keep, or a base model with a longer context.",
    )


def context_to_watch(config: RunConfig, model: ModelConfig, train: PlannedSet) -> list[str]:
    """Return a warning where documents that are not tokenized yet could be longer than the model's context."""
    if train.exact or config.seq <= model.context:
        return []
    return [
        f"--seq {config.seq} is above the base model's context: a document of more than {model.context:,} tokens is refused."
    ]
