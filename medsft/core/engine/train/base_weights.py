"""The weights of the base model as a run starts from them: with the rows of its own vocabulary."""

from __future__ import annotations

from pathlib import Path

from medsft.core.engine.formats.open import open_source
from medsft.core.engine.formats.untrained import untrained_rows
from medsft.core.engine.formats.vocabulary import TABLES, ResizedSource
from medsft.core.engine.parallel.mesh import Mesh
from medsft.core.models.inspect import inspect_base
from medsft.core.planning.plan import RunPlan
from medsft.core.run.integrity import damage
from medsft.errors import MismatchError


def check_base(plan: RunPlan, mesh: Mesh) -> None:
    """Raise `MismatchError` on every rank when the base model is a checkpoint of a run and not as it was written."""
    problem = None
    if plan.base.kind == "medsft-run" and mesh.reports:
        weights = inspect_base(Path(plan.base.path), plan.base.iteration).weights
        found = damage(weights)
        problem = found and f"{weights}, the base model, is damaged: {found}"
    if told := mesh.gather(problem)[0]:
        raise MismatchError(str(told), hint="Copy it again, or start another run: --intermediate_iter N.")


def base_source(plan: RunPlan) -> tuple[ResizedSource, list[str]]:
    """Open the base model, its tables lengthened for new tokens and to the rows that are trained; and what to say about rows.

    Rows in the base's table that a new token takes are made anew like those behind it, and so are rows of control tokens in the
    documents that the base never trained. The original leaves them as they are, and so does a run that repeats it.
    """
    base, rules = plan.base, plan.config.rules
    source = open_source(Path(base.path), iteration=base.iteration)
    untrained = untrained_rows(source, base.control_tokens.values())
    named = {row: token for token, row in base.control_tokens.items()}
    tokens = ", ".join(named[row] for row in sorted(set().union(*untrained.values())))
    copies = (rules.new_token_init or plan.config.new_token_init) == "copy_last"
    remade = {table: {*rows, *base.reused_rows.values()} for table, rows in untrained.items()}
    notes = []
    if tokens and not rules.remakes_rows:
        notes.append(
            f"The base model never trained the rows of {tokens}, which the documents hold; as in the original, they stay."
        )
    elif tokens:
        made = "a copy of the last trained row" if copies else "the mean of the trained rows"
        notes.append(f"The base model never trained the rows of {tokens}, which the documents hold: each begins as {made}.")
    resized = ResizedSource(
        source,
        base.model.vocab_size,
        rows=plan.trained_model.vocab_size,
        new_rows="copy_last" if copies else "mean",
        remade=(remade or {table: set(base.reused_rows.values()) for table in TABLES}) if rules.remakes_rows else None,
        trained=base.token_rows if rules.remakes_rows else None,
    )
    return resized, notes
