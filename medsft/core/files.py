"""Small files that other processes read while they are written, and where what can be made again is kept."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, text: str, *, replace: bool = True) -> None:
    """Write a small file so that readers see all of it or none. `replace=False` raises `FileExistsError` if it exists."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    if replace:
        temporary.replace(path)
        return
    try:
        os.link(temporary, path)
    finally:
        temporary.unlink()


def cache_folder(name: str) -> Path:
    """Return ``$XDG_CACHE_HOME/medsft/NAME``, by default in ``~/.cache``; it may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "medsft" / name
