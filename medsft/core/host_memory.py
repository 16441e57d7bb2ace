"""The main memory that a process may use: the machine's, or less in a container or in a job of a cluster.

Limits are those of control groups, of version 2 (`memory.max`) and 1 (`memory.limit_in_bytes`), on the way from the group of
this process to the root: https://docs.kernel.org/admin-guide/cgroup-v2.html
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

_ROOT = "/sys/fs/cgroup"


def usable_memory() -> int:
    """Return the machine's memory, or the lowest limit of a control group where that is less, in bytes."""
    return min([psutil.virtual_memory().total, *(limit for limit, _ in _limits())])


def free_memory() -> int:
    """Return the bytes that can be taken now: those free on the machine, or less where a control group's limit is nearer.

    The page cache counts as free, as on the machine: the system gives it up before it refuses memory.
    """
    return max(0, min([psutil.virtual_memory().available, *(limit - used for limit, used in _limits())]))


@dataclass(frozen=True, slots=True)
class _Names:
    """What a version of control groups calls its files."""

    limit: str
    used: str
    cache: str
    """In `memory.stat`: pages of files that are not in use, which count as used."""


_VERSION_2 = _Names("memory.max", "memory.current", "inactive_file")
_VERSION_1 = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _limits() -> Iterator[tuple[int, int]]:
    """Yield (limit, bytes in use without the page cache) of each control group of this process that has a limit."""
    for folder, names in _groups():
        limit = text_of(f"{folder}/{names.limit}").strip()
        if limit.isdigit():
            used = text_of(f"{folder}/{names.used}").strip()
            cache = _number_in(text_of(f"{folder}/memory.stat"), names.cache)
            yield int(limit), max(0, int(used) - cache) if used.isdigit() else 0


def _groups() -> Iterator[tuple[str, _Names]]:
    """Yield the folders of the control groups of this process, up to the root that this process sees."""
    seen = set()
    paths = {_VERSION_2: "/", _VERSION_1: "/"}
    for line in text_of("/proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            paths[_VERSION_2] = path
        elif "memory" in controllers.split(","):
            paths[_VERSION_1] = path
    for names, path in paths.items():
        root = _ROOT if names is _VERSION_2 else f"{_ROOT}/memory"
        own = PurePosixPath("/", *(part for part in PurePosixPath(path).parts if part not in ("/", "..")))
        for group in (own, *own.parents):
            folder = f"{root}{group}".rstrip("/")
            if folder not in seen:
                seen.add(folder)
                yield folder, names


def _number_in(text: str, name: str) -> int:
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return int(value)
    return 0


def text_of(path: str) -> str:
    """Return what a file of the system says, nothing where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
