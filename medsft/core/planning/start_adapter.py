"""What a run takes over from an adapter on disk from which it goes on, and which adapters it refuses. No torch."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from medsft.core.config.lora import TARGET_GROUPS
from medsft.core.config.options import check_ranges, flag
from medsft.core.config.run_config import RunConfig
from medsft.core.models.adapter_folder import AdapterFolder
from medsft.errors import ConfigError, MismatchError, Problem


def refuse_to_train_on(adapter: AdapterFolder, config: RunConfig) -> None:
    """Raise `MismatchError` when a run of `config` cannot begin with this adapter, naming why."""
    merged = f"medsft merge {adapter.path} --base BASE --to DIR"
    if config.adapter == "none":
        raise MismatchError(
            f"{adapter.path}: an adapter (PEFT), not a model of its own; --adapter none trains all weights of a model.",
            hint=f"Train the adapter on with --adapter lora, or merge it into its base first: {merged}",
        )
    if adapter.tables:
        names = ", ".join(adapter.tables)
        raise MismatchError(
            f"{adapter.path}: it holds whole tables of tokens ({names}), and of tables only single rows are trained.",
            hint=f"Merge it into its base, and train a new adapter on that: {merged}",
        )


def with_values_of(config: RunConfig, adapter: AdapterFolder) -> RunConfig:
    """Return the config with rank, alpha, targets and scaling of the adapter that is trained on, and a base in nf4 as it had.

    Raises `ConfigError` for each that is given otherwise. A value that is the option's default counts as not given.
    """
    lora = adapter.lora
    group = next((name for name, members in TARGET_GROUPS.items() if members == lora.targets), None)
    own = {
        "lora_rank": lora.rank,
        "lora_alpha": float(lora.alpha),
        "lora_targets": group or ",".join(lora.targets),
        "rslora": lora.rslora,
    }
    asked = config.lora
    assert asked is not None
    same = {
        "lora_rank": asked.rank == lora.rank,
        "lora_alpha": asked.alpha == lora.alpha,
        "lora_targets": asked.targets == lora.targets,
        "rslora": asked.rslora == lora.rslora,
    }
    defaults = {f.name: f.default for f in fields(config)}
    problems = [
        Problem(
            flag(name),
            f"{_spoken(getattr(config, name))} is given, but the adapter in {adapter.path} has {_spoken(own[name])}",
            "Leave it away: training goes on with what the adapter is.",
        )
        for name, equal in same.items()
        if not equal and getattr(config, name) != defaults[name]
    ]
    if problems:
        raise ConfigError(problems)
    nf4 = {"base_precision": "nf4"} if adapter.base_precision == "nf4" and config.base_precision is None else {}
    taken = replace(config, **own, **nf4)  # type: ignore[arg-type]
    if problems := check_ranges(taken):
        raise ConfigError(problems)
    return taken


def doubts_about_training_on(adapter: AdapterFolder, config: RunConfig) -> list[str]:
    """Return where a run trains an adapter on otherwise than it was trained before."""
    lines = []
    before, now = adapter.base_precision, config.base_precision
    if before and now is not None and (before == "nf4") != (now == "nf4"):
        lines.append(
            f"The adapter in {adapter.path} was trained over a base in {before}, and goes on over one in {now}: its first loss "
            "is another than its last was."
        )
    if adapter.dropout:
        lines.append(f"The adapter in {adapter.path} was trained with dropout ({adapter.dropout:g}); medsft trains without.")
    return lines


def rows_of(adapter: AdapterFolder) -> tuple[int, ...]:
    """Return the rows of tables that an adapter has values for, in any table, ascending."""
    return tuple(sorted({row for ids in adapter.rows.values() for row in ids}))


def _spoken(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)
