"""Adapters and the base models that they belong to, found and held against each other. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from medsft.core.models.adapter_folder import AdapterFolder, check_fits, is_adapter, read_adapter
from medsft.core.models.inspect import BaseModel, inspect_base
from medsft.core.models.other_folders import how_to_fetch
from medsft.errors import ConfigError, MismatchError, Problem

_REMEDY = "Give the folder of that model."


def base_to_begin_with(
    path: Path,
    base: Path | None = None,
    *,
    inspect: Callable[[Path], BaseModel] = inspect_base,
    where: str = "--base",
    remedy: str = _REMEDY,
) -> BaseModel:
    """Return the model at `path`, as `inspect` describes it: of an adapter its base, with the adapter and its tokenizer.

    Raises as `adapter_with_base`, and `ConfigError` for a `base` of what is no adapter.
    """
    if not is_adapter(path):
        if base is not None:
            raise ConfigError([Problem(where, f"{base} is given as a base, but {path} is no adapter", "Leave the base away.")])
        return inspect(path)
    adapter, found = adapter_with_base(path, base, inspect=inspect, where=where, remedy=remedy)
    return replace(found, adapter=adapter, tokenizer=adapter.tokenizer or found.tokenizer)


def adapter_with_base(
    path: Path,
    base: Path | None = None,
    *,
    inspect: Callable[[Path], BaseModel] = inspect_base,
    where: str = "--base",
    remedy: str = _REMEDY,
) -> tuple[AdapterFolder, BaseModel]:
    """Return the adapter in a folder and what lies at `base`, or where the adapter says that its base model is.

    `where` and `remedy` are what a person gives a base by. Raises `ConfigError` when the base is not known or not here, and
    `MismatchError` when one of the two cannot be read or they do not fit each other.
    """
    adapter = read_adapter(path)
    found = inspect(base or _named_base(adapter, where, remedy))
    if found.config is None:
        raise MismatchError(f"{found.path}: cannot tell which model this is.", hint="Convert it first: medsft convert.")
    check_fits(adapter, found.config, where=str(found.path))
    return adapter, found


def _named_base(adapter: AdapterFolder, where: str, remedy: str) -> Path:
    if not adapter.base:
        raise ConfigError([Problem(where, f"{adapter.path} does not say which base model it belongs to", remedy)])
    named = Path(adapter.base)
    if not named.exists():
        text = f"{adapter.path} belongs to {adapter.base}, which is not here"
        raise ConfigError([Problem(where, text, f"{remedy} {how_to_fetch(adapter.base)}".rstrip())])
    return named
