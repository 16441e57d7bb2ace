"""Files and folders that a person named: what keeps one from being used is a `ConfigError` under the flag that named it."""

from __future__ import annotations

import os
import stat
import tomllib
from pathlib import Path
from typing import Any

from medsft.errors import ConfigError, Problem

_NAME_BYTES = 255
"""Longest name of a file on the file systems of Linux, in bytes."""
_UNQUOTED = 'Text needs quotes (run_name = "pubmedqa"), and true and false are written in lower case.'


def read_text(path: Path, where: str) -> str:
    """Return the text of a file, which is UTF-8. Raises `ConfigError` under `where`, also for a file that does not exist."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError([Problem(where, f"{path} does not exist")]) from None
    except UnicodeDecodeError as error:
        hint = "Save it as UTF-8."
        raise ConfigError([Problem(where, f"{path} is not text in UTF-8 (byte {error.start})", hint)]) from None
    except (OSError, ValueError) as error:
        raise ConfigError([Problem(where, f"{path} cannot be read: {reason(error)}")]) from None


def read_toml(path: Path, where: str) -> dict[str, Any]:
    """Return what a TOML file holds. Raises `ConfigError` with the file, the line, and what such a line usually lacks."""
    text = read_text(path, where)
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        hint = _UNQUOTED if "Invalid value" in str(error) else ""
        raise ConfigError([Problem(str(path), f"not valid TOML: {error}", hint)]) from None


def reason(error: Exception) -> str:
    """Return what the system says of a path, in a few words."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def is_there(path: Path) -> bool:
    """Whether something has this name, be it a folder, a broken link, or what cannot be looked at."""
    return os.path.lexists(path)


def resolved(path: Path) -> Path:
    """Return the absolute path behind all links; of endless ones the absolute path itself."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return Path(os.path.abspath(path))  # noqa: PTH100 - a link stays what it is


def check_folder(where: str, path: Path) -> list[Problem]:
    """Return why a folder that need not exist yet could never be one: a file has its name, or that of a folder above it."""
    if "\0" in str(path):
        return [Problem(where, "a name of a folder cannot hold the character NUL")]
    absolute = Path(os.path.abspath(path.expanduser()))  # noqa: PTH100 - a link stays what it is
    try:
        for part in (absolute, *absolute.parents):
            if os.path.lexists(part):
                mode = part.stat().st_mode
                return [] if stat.S_ISDIR(mode) else [Problem(where, f"{part} is a file; a folder is needed")]
    except FileNotFoundError:
        return [Problem(where, f"{part} is a link to nothing; a folder is needed")]
    except OSError as error:
        return [Problem(where, f"{path} cannot be a folder: {reason(error)}")]
    return []


def check_name_length(where: str, name: str) -> list[Problem]:
    """Return that the longest file name that comes of what a person typed is too long."""
    surplus = len(name.encode()) - _NAME_BYTES
    if surplus <= 0:
        return []
    return [Problem(where, f"makes names of files {surplus} bytes too long", f"Names have {_NAME_BYTES} bytes: shorten it.")]
