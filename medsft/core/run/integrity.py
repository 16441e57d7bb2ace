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

from medsft.core.basemodel import inspect_base
from medsft.core.files import sizes_differ, unsealed
from medsft.core.run.rundir import MANIFEST as MANIFEST
from medsft.core.run.rundir import RunDir, read_manifest, unreadable_manifest
from medsft.errors import MedsftError

EXPORT_MANIFEST = "medsft.json"
"""In an exported model: what it was made from, with the size and hash of every file."""
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
            _begin(path, read_manifest(path)["files"])


def damage(path: Path) -> str | None:
    """Return what is wrong with a checkpoint's files, or None. Reads all of them."""
    try:
        files = read_manifest(path)["files"]
        differs = sizes_differ(path, files)
    except _NO_MANIFEST as error:
        return unreadable_manifest(error)
    return differs or _other_content(path, files)


def read_export(folder: Path) -> dict[str, Any]:
    """Return the manifest of an exported model. Raises `OSError`, or `ValueError` when it is damaged."""
    return unsealed((folder / EXPORT_MANIFEST).read_bytes())


def export_damage(folder: Path) -> str | None:
    """Return what is wrong with the files of an exported model, or None. Reads all of them.

    Files that somebody has added are no damage. Models of before their files were listed have at least to be complete.
    """
    try:
        files = read_export(folder).get("files")
        if files is None:
            return _unlisted_damage(folder)
        differs = sizes_differ(folder, files)
    except FileNotFoundError:
        return f"{EXPORT_MANIFEST} is missing"
    except _NO_MANIFEST as error:
        return f"{EXPORT_MANIFEST} cannot be read: {getattr(error, 'strerror', None) or error}"
    return differs or _other_content(folder, files)


def _unlisted_damage(folder: Path) -> str | None:
    try:
        inspect_base(folder)
        for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            json.loads((folder / name).read_bytes())
    except MedsftError as error:
        return error.message
    except _NO_MANIFEST as error:
        return str(error)
    return None


def _other_content(path: Path, files: dict[str, dict[str, Any]]) -> str | None:
    """Return the first file whose hash is another one than its record says, or which cannot be read; or None."""
    name = ""
    try:
        for name, found in _begin(path, files).items():
            if found.result() != files[name]["sha256"]:
                return f"the content of {name} has changed"
    except _NO_MANIFEST as error:
        return f"{name or 'a file'} cannot be read: {getattr(error, 'strerror', None) or type(error).__name__}"
    return None


def hash_file(path: Path) -> dict[str, Any]:
    """Return size and SHA-256 of a file as a manifest records them."""
    return {"bytes": path.stat().st_size, "sha256": _sha256(path).result()}


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
