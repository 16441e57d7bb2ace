"""Documents as the model reads them, for people: roles and loss weights in words and in color."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from textual.content import Content

from medsft.core.printable import printable
from medsft.core.units import count, counted

if TYPE_CHECKING:
    from medsft.core.config.run_config import RunConfig
    from medsft.core.data.dataset.samples import Sample
    from medsft.core.run.rundir import RunDir

_COLORS = {"SYSTEM": "$secondary", "QUESTION": "$primary", "ANSWER": "$success"}


def current_batch(run: RunDir, iteration: int, most: int = 8) -> list[Sample]:
    """Decode the first documents of the batch of an iteration counted from 1. Raises `MedsftError`."""
    from medsft.core.data.dataset.samples import samples
    from medsft.core.planning.selection import open_splits
    from medsft.core.run.launch import load_plan
    from medsft.core.settings import Settings
    from medsft.core.workflow import spec_for

    plan = load_plan(run)
    chosen, _ = open_splits(plan)
    documents = chosen.subset.indices[chosen.order.batch(max(0, iteration - 1))[:most]].tolist()
    opened = spec_for(plan.config, Settings(), tokenizer=Path(plan.base.tokenizer)).open_tokenizer()
    return samples(chosen.data, opened.tokenizer, documents)


def show_samples(shown: Iterable[Sample], config: RunConfig) -> Content:
    """Return the documents, each part under its role and weight; where --seq cuts is said in words."""
    parts: list[Content | str] = []
    for sample in shown:
        over = sample.length - 1 - config.seq
        cut = f", {count(over)} too many for --seq {count(config.seq)}" if over > 0 else ""
        parts += [Content.styled(f"Document {count(sample.document)}: {counted(sample.length, 'token')}{cut}", "bold"), "\n"]
        for part in sample.parts:
            role = part.role.name
            weight = part.role.loss_weight(config.loss_mask)
            trained = (
                "trained on" if weight == 1 else f"trained on with weight {weight:g}" if weight else "read, not trained on"
            )
            parts.append(
                Content.styled(f"▌{role.lower()}, {counted(part.tokens, 'token')}, {trained}", f"{_COLORS[role]} italic")
            )
            text, style = printable(part.text.rstrip("\n")), _COLORS[role] if weight else f"dim {_COLORS[role]}"
            parts += ["\n", Content.styled(text, style), "\n"]
        parts.append("\n")
    return Content.assemble(*parts)
