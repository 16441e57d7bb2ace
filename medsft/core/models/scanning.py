"""Finds checkpoints on disk, with the name and the size that each could have in `medsft.toml`."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

from medsft.core.config.options import format_number
from medsft.core.models.inspect import BaseModel, inspect_base
from medsft.core.models.other_folders import name_in_cache
from medsft.errors import ConfigError, MismatchError, Problem

_NAMES_ROUND = 1.5
"""Llama 3.2 1B has 1.24e9 parameters, Qwen 1.5 0.5B 0.62e9."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A checkpoint on disk, with the name and size it could have in a settings file."""

    name: str
    size: float
    """In 1e9 parameters."""
    base: BaseModel


def scan(folder: Path, *, taken: Collection[tuple[str, float]] = ()) -> list[Found]:
    """Return the checkpoints in a folder and below, sorted by path. Links to folders and hidden folders are not followed.

    None gets the name and size of another, nor of one in `taken`: it would take the other's place in a settings file.
    Raises `ConfigError` when the folder does not exist.
    """
    if not folder.is_dir():
        raise ConfigError([Problem("DIR", f"{folder} is no folder")])
    found: list[Found] = []
    for here, folders, files in os.walk(folder):
        # A folder that is a model is one, also with GGUF files of the same model beside its weights.
        inside = [Path(here), *(Path(here, name) for name in sorted(files) if name.endswith(".gguf"))]
        for path in inside:
            try:
                base = inspect_base(path)
            except MismatchError:
                continue
            found.append(_found(base, {*taken, *((one.name, one.size) for one in found)}))
            folders.clear()  # what is inside a checkpoint is part of it
            if path == inside[0]:
                break
        folders[:] = sorted(name for name in folders if not name.startswith("."))
    return found


def _found(base: BaseModel, taken: Collection[tuple[str, float]]) -> Found:
    """Take the name from a path such as `llama2-7b-tp4-pp1` or `SmolLM2-135M.gguf`, and the size if it can be true."""
    name = name_in_cache(base.path) or base.path.name.removesuffix(".gguf")
    size = counted = counted_size(base)
    if match := re.match(r"(?i)(.*?)[-_]?(\d+(?:\.\d+)?)(b|m)(?![a-z0-9])", name):
        named = float(match[2]) / (1 if match[3].lower() == "b" else 1000)
        size = named if sizes_agree(named, counted) else counted
        # Of a run's folders what was trained on what says more than the family.
        run = re.fullmatch(r"-(?:tp\d+-pp\d+|hf)-(.+)", name[match.end() :])
        name = run[1] if run else match[1] or name
    clean = re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip("-._+").lower() or "base"
    names = chain([clean], (f"{clean}-{number}" for number in count(2)))
    return Found(name=next(name for name in names if (name, size) not in taken), size=size, base=base)


def counted_size(base: BaseModel) -> float:
    """Return the parameters of a model in 1e9, three digits of them; by the bytes of its files where nothing else says it."""
    exact = base.config.num_parameters() / 1e9 if base.config is not None else base.size_bytes / 2e9
    return float(f"{exact:.3g}")


def sizes_agree(named: float, counted: float) -> bool:
    """Tell whether a size can be the name of a model of `counted` parameters: names round, and some leave the tables out."""
    return counted / _NAMES_ROUND <= named <= counted * _NAMES_ROUND


def check_size(base: BaseModel, size: float) -> None:
    """Raise `ConfigError` when a model has another size than the one it is to be asked for by."""
    counted = counted_size(base)
    if counted and not sizes_agree(size, counted):
        text = f"{format_number(size)} (1e9 parameters) is not the size of {base.path}, which has {format_number(counted)}"
        raise ConfigError([Problem("SIZE", text, f"Use {format_number(counted)}, or the model that was meant.")])
