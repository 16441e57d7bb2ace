"""Documents as the model reads them, for people: roles and loss weights in words and in color."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from textual.content import Content

from medsft.core.printable import printable

if TYPE_CHECKING:
    from medsft.core.config.run_config import RunConfig
    from medsft.core.data.dataset.samples import Sample, SamplePart
    from medsft.core.run.rundir import RunDir

_COLORS = {
    "SYSTEM": ("$secondary",),
    "QUESTION": ("$primary", "$foreground"),
    "ANSWER": ("$success", "$accent"),
    "TEXT": ("$success",),
}
"""Of the turns of a conversation in turn."""


def current_batch(run: RunDir, iteration: int, most: int = 8) -> list[Sample]:
    """Decode the first documents of the batch of an iteration counted from 1. Raises `MedsftError`."""
    from medsft.core.data.dataset.samples import samples
    from medsft.core.planning.selection import open_splits
    from medsft.core.run.launch import load_plan
    from medsft.core.settings import Settings
    from medsft.core.workflow import spec_for

    plan = load_plan(run)
    chosen, _ = open_splits(plan)
    positions = chosen.order.batch(max(0, iteration - 1))[:most].tolist()
    opened = spec_for(plan.config, Settings(), tokenizer=Path(plan.base.tokenizer)).open_tokenizer()
    return samples(chosen.data, opened.tokenizer, chosen.subset, positions)


def show_samples(shown: Iterable[Sample], config: RunConfig) -> Content:
    """Return the documents, each part under its role and weight; where --seq cuts is said in words."""
    parts: list[Content | str] = []
    for sample in shown:
        parts += [Content.styled(sample.title(config.seq).capitalize(), "bold"), "\n"]
        for part in sample.parts:
            colors, weight = _COLORS[part.role.name], part.weight(config.loss_mask)
            color = colors[(part.turn - 1) % len(colors)]
            parts.append(Content.styled(f"▌{sample.label(part)}, {_use(part, weight)}", f"{color} italic"))
            style = color if weight else f"dim {color}"
            parts += ["\n", Content.styled(printable(part.text.rstrip("\n")), style), "\n"]
        parts.append("\n")
    return Content.assemble(*parts)


def _use(part: SamplePart, weight: float) -> str:
    if part.cut:
        return "cut away"
    return "trained on" if weight == 1 else f"trained on with weight {weight:g}" if weight else "read, not trained on"
