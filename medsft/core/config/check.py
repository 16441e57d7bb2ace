"""What is wrong with the values of a `RunConfig`: every problem at once, each under the flag that a person types."""

from __future__ import annotations

import math
import re
from datetime import date

from medsft.core.config.data_files import check_data_files
from medsft.core.config.options import check_ranges, flag
from medsft.core.config.row_options import check_row_options
from medsft.core.config.run_config import RunConfig
from medsft.errors import Problem


def check(config: RunConfig) -> list[Problem]:
    """Return what is wrong with the values taken alone, without looking at the disk."""
    problems = check_ranges(config)
    if not config.run_name:
        problems.append(Problem("--run_name", "a name is needed", "It names the run and its tokenized set."))
    problems.extend(check_names(config))
    if config.template_date is not None and not _is_date(config.template_date):
        problems.append(Problem("--template_date", f"`{config.template_date}` is not a date", "Write it as 2026-11-28."))
    if math.isfinite(config.lr) and config.lr < config.min_lr < math.inf:
        problems.append(Problem("--min_lr", f"{config.min_lr:g} is above --lr {config.lr:g}"))
    if (limit := config.rules.seed_limit) is not None and config.seed >= limit:
        problems.append(
            Problem("--seed", f"{config.seed} is too large with --compat {config.compat}", f"Must be below {limit}.")
        )
    problems.extend(check_row_options(config.format, config.row_options))
    if config.question_key == config.answer_key:
        problems.append(Problem("--answer_key", f"`{config.answer_key}` is also the key of the question"))
    wrong_shares = check_data_files(config.data, config.val)
    problems.extend(wrong_shares or _check_shares(config))
    if config.nodes > 1 and config.addr is None:
        problems.append(Problem("--addr", "needed with --nodes above 1", "Give the address of node 0."))
    if config.rank >= config.nodes:
        problems.append(Problem("--rank", f"{config.rank} is not below --nodes {config.nodes}", "Ranks count from 0."))
    return problems


def _check_shares(config: RunConfig) -> list[Problem]:
    problems = []
    if config.group_key is not None and config.val_share is None:
        remedy = "Give one, such as --val 0.05, or leave --group_key away."
        problems.append(Problem("--group_key", "is used only with a share in --val", remedy))
    if not config.rules.knows_shares:
        given = (("--data", bool(config.shares), "files"), ("--val", config.val_share is not None, "a file"))
        problems += [
            Problem(where, f"a share is not possible with --compat {config.compat}", f"Give {instead} without one.")
            for where, wrong, instead in given
            if wrong
        ]
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
        return [Problem(where, "must not contain `-tpN-ppN`: that part of a folder name is the layout of a run")]
    return []


def _is_date(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


_UNUSUAL_LR = 1e-3
"""Of full fine-tuning with Adam: recipes of the model families that are supported use 5e-6 to 1e-4; above, losses rise."""


def doubts(config: RunConfig) -> list[str]:
    """Return values that are allowed but are most likely slips, one sentence each, with the usual range."""
    if config.lr <= _UNUSUAL_LR:
        return []
    return [f"--lr {config.lr:g} is unusually high: full fine-tuning mostly uses 5e-6 to 1e-4, and the loss is likely to rise."]
