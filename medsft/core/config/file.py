"""The TOML file of a run: `--config FILE`, and what the wizard saves. Each option stands under its help text, in sections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsft.core.config.options import Default, format_number
from medsft.core.config.run_config import GROUPS, RunConfig, from_mapping, to_mapping
from medsft.core.disk import writing
from medsft.core.files import write_atomically
from medsft.core.other_tools import did_you_mean
from medsft.core.paths import read_toml
from medsft.errors import ConfigError, Problem

if TYPE_CHECKING:
    from tomlkit import TOMLDocument


def load_toml(path: Path) -> RunConfig:
    """Read a run's TOML file. Raises `ConfigError` naming the file and every unknown or wrong entry."""
    raw = read_toml(path, "--config")
    flat: dict[str, Any] = {}
    for name, value in raw.items():
        if isinstance(value, dict):
            if name not in GROUPS:
                hint = did_you_mean(name, GROUPS) or f"Sections: {', '.join(GROUPS)}."
                raise ConfigError([Problem(f"{path}: [{name}]", "there is no such section", hint)])
            flat.update(value)
        else:
            flat[name] = value
    return from_mapping(flat, where=str(path))


def hint_of_paths(file: Path, config: RunConfig, message: str) -> str:
    """Return what to do where a message names a data file that lies beside the run's TOML, not in this folder; or ""."""
    for path in (*config.data_files, *config.val_files):
        beside = file.parent / path
        if message.startswith(f"{path}: ") and not path.exists() and beside.exists():
            remedy = f"write {beside}, or start in {file.parent}"
            return f"It lies beside {file}, whose paths are relative to the working folder: {remedy}."
    return ""


def save_toml(config: RunConfig, path: Path) -> None:
    """Write the run's TOML, each option under its help text. An existing file keeps its comments and its order.

    Raises `ConfigError` when the file cannot be written.
    """
    import tomlkit

    new = not path.exists()
    document = _new_document() if new else tomlkit.parse(path.read_text(encoding="utf-8"))
    values = {name: value for name, value in to_mapping(config).items() if not isinstance(getattr(config, name), Default)}
    for f in fields(RunConfig):
        group = f.metadata["group"]
        if group not in document:
            document.add(group, tomlkit.table())
        table = document[group]
        if f.name not in values:
            table.pop(f.name, None)
            if new and f.metadata["with_adapter"] is not None:  # its default is shown, and still follows from --adapter
                table.add(tomlkit.comment(_comment(f.metadata)))
                table.add(tomlkit.comment(f"{f.name} = {getattr(config, f.name)!r}"))
        elif f.name in table:
            if table[f.name] != values[f.name]:
                table[f.name] = values[f.name]
        else:
            table.add(tomlkit.comment(_comment(f.metadata)))
            table.add(f.name, values[f.name])
    with writing(path, ""):
        write_atomically(path, tomlkit.dumps(document))


def _new_document() -> TOMLDocument:
    import tomlkit

    document = tomlkit.document()
    document.add(tomlkit.comment("Options of a run: medsft sft --config FILE. Flags win over them."))
    document.add(tomlkit.comment("Relative paths begin at the folder in which medsft is started, not at that of this file."))
    document.add(tomlkit.nl())
    return document


def _comment(metadata: Mapping[str, Any]) -> str:
    extra = [metadata["unit"]] if metadata["unit"] else []
    if metadata["choices"]:
        extra.append(" | ".join(metadata["choices"]))
    if metadata["with_adapter"] is not None:
        extra.append(f"with an adapter {format_number(metadata['with_adapter'])}")
    return metadata["help"] + (f" ({'; '.join(extra)})" if extra else "")
