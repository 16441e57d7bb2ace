"""How the state of the wizard follows from the texts and from what the core said last. A pure function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from medsft.errors import Problem
from medsft.tui.wizard.form import answered, parse
from medsft.tui.wizard.messages import State
from medsft.tui.wizard.plan_text import plan_of
from medsft.tui.wizard.steps import page_of

_NO_BASE = Problem("--checkpoint", "no base model is chosen yet", "Choose one from the list, or search a folder.")


def renewed(state: State, texts: Mapping[str, str], **changes: Any) -> State:
    """Return the state with new texts and other changes; its problems stand in the order of the pages.

    Problems of the latest look stay until the next one, but for those whose field was edited since.
    """
    config, problems = parse(texts)
    state = replace(state, texts=dict(texts), config=config, **changes)
    seen = state.outlook
    known = {str(problem) for problem in problems}
    later = [p for p in seen.problems if str(p) not in known and not answered(p, seen.config, config)] if seen else []
    if not texts.get("checkpoint"):
        later = [_NO_BASE if problem.where == "--checkpoint" else problem for problem in later]
    plan = plan_of(seen)
    ordered = tuple(sorted((*problems, *later), key=page_of))
    return replace(state, problems=ordered, model=plan.base.model if plan else state.model)
