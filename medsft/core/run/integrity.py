"""Whether the files of a checkpoint are as they were written: their sizes and hashes against its manifest. Without torch.

Hashes are remembered for as long as a file's size and time of change are the same, so that they can be begun ahead: a rank
hashes the checkpoint that it will go on from while it imports what it trains with.
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from medsft.core.run.rundir import RunDir

MANIFEST = "manifest.json"
_CHUNK_BYTES = 32 << 20
"""Read and hashed at once. Large, for after each a thread waits until one that runs Python lets go of the interpreter."""
_MAX_THREADS = 8
_NO_MANIFEST = (OSError, ValueError, KeyError, TypeError, AttributeError)
"""What reading a manifest raises that is missing, damaged, or something else."""


def find_good(run: RunDir) -> tuple[int | None, list[str]]:
    """Return (iteration of the latest undamaged checkpoint or None, a line for each damaged one after it)."""
    problems: list[str] = []
    for iteration in reversed(run.checkpoints()):
        path = run.checkpoint_path(iteration)
        problem = damage(path)
        if problem is None:
            return iteration, problems
        problems.append(f"checkpoint {path.name} is damaged: {problem}")
    return None, problems


def hash_ahead(run: RunDir) -> None:
    """Begin to hash the latest checkpoint, for a `find_good` that comes later."""
    iterations = run.checkpoints()
    if iterations:
        path = run.checkpoint_path(iterations[-1])
        with suppress(*_NO_MANIFEST):  # `find_good` will say so
            _begin(path, _recorded(path))


def damage(path: Path) -> str | None:
    """Return what is wrong with a checkpoint's files, or None. Reads all of them."""
    try:
        files = _recorded(path)
        for name, record in files.items():
            if not (path / name).is_file():
                return f"{name} is missing"
            if (path / name).stat().st_size != record["bytes"]:
                return f"{name} has {(path / name).stat().st_size:,} bytes, not {record['bytes']:,}"
        for name, found in _begin(path, files).items():
            if found.result() != files[name]["sha256"]:
                return f"the content of {name} has changed"
    except _NO_MANIFEST as error:
        return f"{MANIFEST} cannot be read: {type(error).__name__}"
    return None


def hash_file(path: Path) -> dict[str, Any]:
    """Return size and SHA-256 of a file as a manifest records them."""
    return {"bytes": path.stat().st_size, "sha256": _sha256(path).result()}


def _recorded(path: Path) -> dict[str, dict[str, Any]]:
    """Return what the manifest of a checkpoint records of each file."""
    files: dict[str, dict[str, Any]] = json.loads((path / MANIFEST).read_text())["files"]
    return files


def _begin(path: Path, files: dict[str, dict[str, Any]]) -> dict[str, Future[str]]:
    return {name: _sha256(path / name) for name in files}


def _sha256(path: Path) -> Future[str]:
    status = path.stat()
    return _sha256_of(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1024)
def _sha256_of(path: Path, size: int, mtime_ns: int) -> Future[str]:
    """Size and time of change are there to tell a changed file from one that was hashed before."""
    return _threads().submit(_digest, path)


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1), thread_name_prefix="hashing")


def _forget() -> None:
    """In a forked process: the threads that would have filled in what is remembered are in the other one."""
    _sha256_of.cache_clear()
    _threads.cache_clear()


os.register_at_fork(after_in_child=_forget)


def _digest(path: Path) -> str:
    digest, chunk = hashlib.sha256(), memoryview(bytearray(min(path.stat().st_size, _CHUNK_BYTES) or 1))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(chunk):
            digest.update(chunk[:count])
    return digest.hexdigest()
