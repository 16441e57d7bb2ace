"""What is wrong with the values of a `RunConfig`: every problem at once, each under the flag that a person types."""

from __future__ import annotations

import math
import re
from dataclasses import fields
from datetime import date

from medsft.core.config.data_files import check_data_files
from medsft.core.config.eval_tasks import DEFAULT_LIMIT, best_task, check_eval_tasks
from medsft.core.config.lora import TARGET_GROUPS, TARGETS, named_targets
from medsft.core.config.options import check_ranges, flag
from medsft.core.config.row_options import check_row_options
from medsft.core.config.run_config import OF_ADAPTER, RunConfig
from medsft.core.other_tools import did_you_mean
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
    if config.patience is not None:
        problems.extend(_check_patience(config))
    problems.extend(_check_evaluation(config))
    if config.optimizer == "adamw8bit" and not config.rules.knows_8bit_moments:
        message = f"the original keeps weights and moments in fp32, and so does --compat {config.compat}"
        problems.append(Problem("--optimizer", message, "Leave one of the two away."))
    files = len(config.data) + len(config.val_files)
    problems.extend(check_row_options(config.format, config.row_options, files=files))
    named = {problem.where for problem in problems}
    problems.extend(problem for problem in _check_adapter(config) if problem.where not in named)
    if config.question_key == config.answer_key:
        problems.append(Problem("--answer_key", f"`{config.answer_key}` is also the key of the question"))
    wrong_shares = check_data_files(config.data, config.val)
    problems.extend(wrong_shares or _check_shares(config))
    if config.nodes > 1 and config.addr is None:
        problems.append(Problem("--addr", "needed with --nodes above 1", "Give the address of node 0."))
    if config.rank >= config.nodes:
        problems.append(Problem("--rank", f"{config.rank} is not below --nodes {config.nodes}", "Ranks count from 0."))
    return problems


def _check_patience(config: RunConfig) -> list[Problem]:
    where = "--patience"
    if not config.rules.keeps_best:
        return [Problem(where, f"is not possible with --compat {config.compat}", "The original trains to the end.")]
    if config.keep_best == "none":
        return [Problem(where, "needs the best checkpoint, and --keep_best none keeps none", "Leave one of the two away.")]
    return []


def _check_evaluation(config: RunConfig) -> list[Problem]:
    limit_given = config.eval_limit != DEFAULT_LIMIT
    problems = check_eval_tasks(config.eval_task, config.keep_best, limit_given=limit_given)
    if not problems and best_task(config.keep_best) is not None and not config.rules.keeps_best:
        message = f"is not possible with --compat {config.compat}"
        problems.append(Problem("--keep_best", message, "The original keeps no best checkpoint: leave it away."))
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


def _check_adapter(config: RunConfig) -> list[Problem]:
    """Return what is wrong with the options of an adapter, and those that are given where none is trained."""
    problems = []
    if config.adapter == "none":
        changed = [f.name for f in fields(config) if f.name in OF_ADAPTER and getattr(config, f.name) != f.default]
        remedy = "Add --adapter lora, or leave it away: all weights are trained."
        problems += [Problem(flag(name), "is used only with --adapter lora", remedy) for name in changed]
    elif not config.rules.knows_adapters:
        message = f"the original trains all weights, and so does --compat {config.compat}"
        problems.append(Problem("--adapter", message, "Leave one of the two away."))
    unknown = [name for name in named_targets(config.lora_targets) if name not in TARGETS]
    if unknown and config.adapter != "none":
        problems.append(Problem("--lora_targets", f"`{unknown[0]}` matches no linear layer", _target_meant(unknown[0])))
    return problems


def _target_meant(name: str) -> str:
    """Return what to write in the place of a target that does not exist."""
    known = (*TARGET_GROUPS, *TARGETS)
    last = name.lower().rpartition(".")[2]  # of a module's whole name, as PEFT takes it
    meant = _TARGETS_ELSEWHERE.get(last) or (f"Did you mean `{last}`?" if last in known else did_you_mean(name, known))
    return f"{meant} There are {', '.join(TARGET_GROUPS)}, and {', '.join(TARGETS)}.".lstrip()


_TARGETS_ELSEWHERE = {
    **dict.fromkeys(("all-linear", "all_linear", "linear"), "All linear layers are `all`."),
    **dict.fromkeys(("qkv_proj", "query_key_value", "c_attn", "wqkv"), "These models have q_proj, k_proj and v_proj."),
    **dict.fromkeys(("gate_up_proj", "w1", "w3"), "These models have gate_proj and up_proj."),
    **dict.fromkeys(("embed_tokens", "lm_head"), "Rows of new tokens are trained anyway, in the embedding and in the output."),
}


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
_UNUSUAL_LR_OF_ADAPTER = 5e-3
_LOW_LR_OF_ADAPTER = 5e-5
"""Recipes for low-rank adapters use 1e-4 to 5e-4: ten times the rate of full fine-tuning."""


def doubts(config: RunConfig) -> list[str]:
    """Return values that are allowed but are most likely slips, one sentence each, with the usual range."""
    if config.adapter != "none":
        return _doubts_of_adapter(config)
    if config.lr <= _UNUSUAL_LR:
        return []
    return [f"--lr {config.lr:g} is unusually high: full fine-tuning mostly uses 5e-6 to 1e-4, and the loss is likely to rise."]


def _doubts_of_adapter(config: RunConfig) -> list[str]:
    if config.lr > _UNUSUAL_LR_OF_ADAPTER:
        return [f"--lr {config.lr:g} is unusually high: adapters mostly use 1e-4 to 5e-4, and the loss is likely to rise."]
    if config.lr < _LOW_LR_OF_ADAPTER:
        return [f"--lr {config.lr:g} is unusually low: adapters mostly use 1e-4 to 5e-4, and learn little below."]
    return []
