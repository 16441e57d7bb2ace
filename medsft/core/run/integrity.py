"""Whether files are as they were written: of a checkpoint, a tokenized set, a finished model. Without torch.

Their sizes and hashes must be those of their manifest; where a set's manifest holds none, its files must agree.

Hashes are remembered for as long as a file's size and time of change are the same, so that they can be begun ahead: a rank
hashes the checkpoint that it will go on from, and its sets, while it imports what it trains with.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from medsft.core.data.dataset.dataset import answers_path, open_tokenized, role_prefix, text_prefix
from medsft.core.data.dataset.indexed import bin_path, idx_path
from medsft.core.data.dataset.manifest import Manifest
from medsft.core.data.dataset.manifest import read_manifest as read_manifest_of_set
from medsft.core.files import sizes_differ, unsealed
from medsft.core.models.inspect import inspect_base
from medsft.core.models.run_folder import UNREADABLE_MANIFEST, read_manifest, why_unreadable
from medsft.core.run.rundir import RunDir
from medsft.errors import MedsftError

EXPORT_MANIFEST = "medsft.json"
"""In an exported model: what it was made from, with the size and hash of every file."""
_CHUNK_BYTES = 32 << 20
"""Read and hashed at once. Large, for after each a thread waits until one that runs Python lets go of the interpreter."""
_MAX_THREADS = 8


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


def hash_ahead(run: RunDir, sets: Sequence[Path] = ()) -> None:
    """Begin to hash the latest checkpoint and the tokenized sets, for a `find_good` and a `set_damage` that come later."""
    for folder in sets:
        with suppress(MedsftError, *UNREADABLE_MANIFEST):
            _begin(folder, _recorded_of_set(folder))
            _disagreement(folder)
    iterations = run.checkpoints()
    if iterations:
        path = run.checkpoint_path(iterations[-1])
        with suppress(*UNREADABLE_MANIFEST):  # `find_good` will say so
            _begin(path, read_manifest(path)["files"])


def damage(path: Path) -> str | None:
    """Return what is wrong with a checkpoint's files, or None. Reads all of them."""
    try:
        files = read_manifest(path)["files"]
        differs = sizes_differ(path, files)
    except UNREADABLE_MANIFEST as error:
        return why_unreadable(error)
    return differs or _other_content(path, files)


def set_damage(folder: Path) -> str | None:
    """Return what is wrong with the files of a tokenized set, or None. Reads all of them.

    Raises `DataError` where `open_tokenized` does.
    """
    manifest = open_tokenized(folder).manifest
    return _other_content(folder, _recorded(folder, manifest)) or _disagreement(folder).result()


def _recorded_of_set(folder: Path) -> dict[str, dict[str, Any]]:
    manifest = read_manifest_of_set(folder)
    return {} if manifest is None else _recorded(folder, manifest)


def _recorded(folder: Path, manifest: Manifest) -> dict[str, dict[str, Any]]:
    text, role = bin_path(text_prefix(folder)).name, bin_path(role_prefix(folder)).name
    return {text: {"sha256": manifest.text_sha256}, role: {"sha256": manifest.role_sha256}}


def _disagreement(folder: Path) -> Future[str | None]:
    """Find the file of a set that does not fit the others, of those without a hash: they say again what the hashed ones say."""
    prefixes = text_prefix(folder), role_prefix(folder)
    files = (*map(idx_path, prefixes), answers_path(folder))
    return _disagreement_of(folder, tuple(_stamp(path) for path in files if path.exists()))


@lru_cache(maxsize=64)
def _disagreement_of(folder: Path, stamps: tuple[tuple[int, int, int], ...]) -> Future[str | None]:
    def look() -> str | None:
        data = open_tokenized(folder)
        for prefix, reader in ((text_prefix(folder), data.text), (role_prefix(folder), data.role)):
            if not reader.starts_follow_sizes():
                return f"the content of {idx_path(prefix).name} has changed"
        if not data.answers_agree():
            return f"the content of {answers_path(folder).name} has changed"
        return None

    return _threads().submit(look)


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
    except UNREADABLE_MANIFEST as error:
        return f"{EXPORT_MANIFEST} cannot be read: {getattr(error, 'strerror', None) or error}"
    return differs or _other_content(folder, files)


def _unlisted_damage(folder: Path) -> str | None:
    try:
        inspect_base(folder)
        for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            json.loads((folder / name).read_bytes())
    except MedsftError as error:
        return error.message
    except UNREADABLE_MANIFEST as error:
        return str(error)
    return None


def _other_content(path: Path, files: dict[str, dict[str, Any]]) -> str | None:
    """Return the first file whose hash is another one than its record says, or which cannot be read; or None."""
    name = ""
    try:
        for name, found in _begin(path, files).items():
            if found.result() != files[name]["sha256"]:
                return f"the content of {name} has changed"
    except UNREADABLE_MANIFEST as error:
        return f"{name or 'a file'} cannot be read: {getattr(error, 'strerror', None) or type(error).__name__}"
    return None


def hash_file(path: Path) -> dict[str, Any]:
    """Return size and SHA-256 of a file as a manifest records them."""
    return {"bytes": path.stat().st_size, "sha256": _sha256(path).result()}


def _begin(path: Path, files: dict[str, dict[str, Any]]) -> dict[str, Future[str]]:
    return {name: _sha256(path / name) for name in files}


def _sha256(path: Path) -> Future[str]:
    return _sha256_of(path, _stamp(path))


def _stamp(path: Path) -> tuple[int, int, int]:
    """Return what tells a changed file from one that was hashed before: size, time of change, inode."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


@lru_cache(maxsize=1024)
def _sha256_of(path: Path, stamp: tuple[int, int, int]) -> Future[str]:
    return _threads().submit(_digest, path)


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1), thread_name_prefix="hashing")


def _forget() -> None:
    """In a forked process: the threads that would have filled in what is remembered are in the other one."""
    _sha256_of.cache_clear()
    _disagreement_of.cache_clear()
    _threads.cache_clear()


os.register_at_fork(after_in_child=_forget)


def _digest(path: Path) -> str:
    digest, chunk = hashlib.sha256(), memoryview(bytearray(min(path.stat().st_size, _CHUNK_BYTES) or 1))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(chunk):
            digest.update(chunk[:count])
    return digest.hexdigest()
