"""What is wrong with the values of a `RunConfig`: every problem at once, each under the flag that a person types."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from datetime import date
from typing import Any

from medsft.core.config import RunConfig, flag, format_number
from medsft.core.other_tools import did_you_mean
from medsft.errors import Problem


def check(config: RunConfig) -> list[Problem]:
    """Return what is wrong with the values taken alone, without looking at the disk."""
    problems: list[Problem] = []
    for f in fields(RunConfig):
        problems.extend(_check_range(f.name, f.metadata, getattr(config, f.name)))
    if not config.run_name:
        problems.append(Problem("--run_name", "a name is needed", "It names the run and its tokenised set."))
    problems.extend(check_names(config))
    if config.template_date is not None and not _is_date(config.template_date):
        problems.append(Problem("--template_date", f"`{config.template_date}` is no date", "Write it as 2026-11-28."))
    if math.isfinite(config.lr) and config.lr < config.min_lr < math.inf:
        problems.append(Problem("--min_lr", f"{config.min_lr:g} is above --lr {config.lr:g}"))
    if (limit := config.rules.seed_limit) is not None and config.seed >= limit:
        problems.append(
            Problem("--seed", f"{config.seed} is too large with --compat {config.compat}", f"Must be below {limit}.")
        )
    if config.question_key == config.answer_key:
        problems.append(Problem("--answer_key", f"`{config.answer_key}` is the key of the question, too"))
    if config.nodes > 1 and config.addr is None:
        problems.append(Problem("--addr", "needed with --nodes above 1", "Give the address of node 0."))
    if config.rank >= config.nodes:
        problems.append(Problem("--rank", f"{config.rank} is not below --nodes {config.nodes}", "Ranks count from 0."))
    return problems


def check_names(config: RunConfig) -> list[Problem]:
    """Return what is wrong with the names that become a part of folder names."""
    names = {name: getattr(config, name) for name in ("run_name", "id", "checkpoint")}
    return [problem for name, text in names.items() if text for problem in check_folder_name(flag(name), text)]


def check_folder_name(where: str, text: str) -> list[Problem]:
    """Return what keeps a name from being a part of a run's folder name, under `where`: `../x` would lead out of its parent."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", text):
        return [Problem(where, f"`{text}` cannot be part of a folder name", "Use letters, digits, `.`, `_`, `+`, `-`.")]
    if re.search(r"-tp\d+-pp\d+", text):
        return [Problem(where, "must not contain `-tpN-ppN`: that part names the levels of a run")]
    return []


def _is_date(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


_LARGEST_WHOLE_NUMBER = 10**9
"""Of options that have no limit of their own: more is a slip of the keyboard, and the arithmetic of a plan overflows."""


def _check_range(name: str, metadata: Mapping[str, Any], value: Any) -> list[Problem]:
    if value is None:
        return []
    choices, low, high = metadata["choices"], metadata["minimum"], metadata["maximum"]
    if isinstance(value, float) and not math.isfinite(value):  # a comparison with nan holds for no limit
        return [Problem(flag(name), f"{value} is not a finite number")]
    if isinstance(value, int) and high is None:
        high = _LARGEST_WHOLE_NUMBER
    if choices and value not in choices:
        return [Problem(flag(name), f"`{value}` is not one of {', '.join(choices)}", did_you_mean(str(value), choices))]
    # Epsilon 0: a weight that no document touches is 0 / 0. A mean with coefficient 1 is corrected by a division by 0.
    positive, below = name in ("size", "epochs", "lr", "adam_eps"), name in ("adam_beta1", "adam_beta2")
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    if low is not None and (value < low or (positive and value <= 0)):
        return [Problem(flag(name), f"{shown} is too small", f"Must be {'above 0' if positive else f'{low:g} or more'}.")]
    if high is not None and (value > high or (below and value == high)):
        limit = str(high) if isinstance(high, int) else format_number(high)
        return [Problem(flag(name), f"{shown} is too large", f"Must be {f'below {limit}' if below else f'{limit} or less'}.")]
    return []
