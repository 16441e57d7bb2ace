"""Files and folders that appear whole or not at all, and where what can be made again is kept."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from medsft.errors import MismatchError

try:
    import fcntl
except ImportError:  # not on Windows: what a killed process left there stays
    fcntl = None  # type: ignore[assignment]

_SEAL = "seal"
"""Key of a record's hash of itself."""
_NO_HARD_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
"""What file systems without hard links say to one."""
_NO_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EBADF})
"""What file systems say that sync files and no folders (CIFS, FUSE)."""


def write_atomically(path: Path, text: str, *, replace: bool = True) -> None:
    """Write a small file so that readers see all of it or none. `replace=False` raises `FileExistsError` if it exists."""
    with new_file(path, replace=replace) as file:
        file.write(text.encode())


@contextmanager
def new_file(path: Path, *, replace: bool = True) -> Iterator[BinaryIO]:
    """Give a file to write into, which is synced and takes the name `path` when all went well and vanishes when not.

    `replace=False` raises `FileExistsError` where there is one of that name.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if replace:
            temporary.replace(path)
        else:
            _name_once(temporary, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            # The system names no file where a write fails, and people know nothing of the temporary one.
            error.filename = str(path)
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _name_once(temporary: Path, path: Path) -> None:
    """Give a file its name, unless there is one of that name already."""
    try:
        os.link(temporary, path)
        temporary.unlink()
        return
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
    with alone_in(path.parent):  # exFAT, some network mounts
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        temporary.replace(path)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process is inside this block for the same folder. Where a file system has no locks, do not wait.

    The folder itself is what is locked, so no file is left behind; the system lets go when a process dies.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError, AttributeError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a folder to write into, which takes the name `path` when all went well and vanishes when not.

        .NAME.PID.new/ --write--> sync every file and folder in it --> rename --> sync the parent

    So what has the name is whole, after a power cut too. Missing parents are made. What killed processes left of earlier
    attempts is removed first. Raises `MismatchError` before and after the writing where the name is taken (see `check_is_new`).
    """
    check_is_new(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.new")
    held: int | None = None
    with parents_of(path):
        try:
            _remove_left_overs(path)
            aside.mkdir()
            held = _hold(aside)
            yield aside
            sync_tree(aside)
            check_is_new(path)
            aside.rename(path)
            sync_entry(path.parent)
        except BaseException as error:
            if isinstance(error, OSError):  # people know nothing of the folder aside, which is gone when they read this
                for name in ("filename", "filename2"):
                    if isinstance(file := getattr(error, name), str):
                        setattr(error, name, file.replace(str(aside), str(path)))
            shutil.rmtree(aside, ignore_errors=True)
            raise
        finally:
            if held is not None:
                os.close(held)


def is_taken(path: Path) -> bool:
    """Whether something stands where `new_folder` would put its folder. An empty folder gives way, so it does not count."""
    return os.path.lexists(path) and not (path.is_dir() and not path.is_symlink() and not any(path.iterdir()))


def check_is_new(folder: Path) -> None:
    """Raise `MismatchError` where the name of a folder to be written is taken, or a file is where its parent would be."""
    if is_taken(folder):
        raise MismatchError(f"{folder}: exists already.", hint="Choose another folder, or move this one away.")
    above = next((parent for parent in folder.parents if os.path.lexists(parent)), None)
    if above is not None and not above.is_dir():
        raise MismatchError(f"{folder}: {above} is no folder, so nothing can be made in it.", hint="Choose another folder.")


@contextmanager
def parents_of(path: Path, *, mode: int = 0o777) -> Iterator[None]:
    """Make the folders above a path that are missing; they go again, where nothing else is in them, when the block fails."""
    made = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=mode)
        yield
    except BaseException:
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        raise


def sync_tree(folder: Path) -> None:
    """Make every file and folder below `folder`, and itself, durable."""
    for here, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync_entry(Path(here, name))
        sync_entry(Path(here))


def sync_entry(path: Path) -> None:
    """Make a file's content, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def sealed(record: Mapping[str, Any]) -> str:
    """Return a record as JSON text with a hash of itself in it, which `unsealed` checks."""
    return json.dumps({**record, _SEAL: _seal(record)}, indent=1) + "\n"


def unsealed(text: str | bytes) -> dict[str, Any]:
    """Return the record of a JSON text. Raises `ValueError` when it is none, or not as `sealed` wrote it.

    Records of before there were seals have none, and are taken as they are.
    """
    record = json.loads(text)
    if not isinstance(record, dict):
        raise ValueError("not an object")
    seal = record.pop(_SEAL, None)
    if seal is not None and seal != _seal(record):
        raise ValueError("it is not as it was written")
    return record


def _seal(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def sizes_differ(folder: Path, files: Mapping[str, Any]) -> str | None:
    """Return what differs first between a folder and the sizes that its manifest records of `files`, or None."""
    for name, record in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != record["bytes"]:
            return f"{name} has {path.stat().st_size:,} bytes, not {record['bytes']:,}"
    return None


def _hold(folder: Path) -> int | None:
    """Return a handle that shows that this process still writes the folder: the system takes it back when the process ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    except (OSError, AttributeError):  # a file system without locks, or one where another process has it
        os.close(descriptor)
        return None


def _remove_left_overs(path: Path) -> None:
    """Remove the attempts at `path` whose processes are gone."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.new"):
        with suppress(OSError):
            held = _hold(left)
            if held is not None:
                shutil.rmtree(left, ignore_errors=True)
                os.close(held)


def at_home(value: Any) -> Any:
    """Return a path with its leading `~` expanded, which a shell does not do inside quotes, nor in a TOML file.

    Values that are no paths stay as they are, and so does, as in a shell, a path whose `~name` is nobody's home.
    """
    try:
        return value.expanduser() if isinstance(value, Path) else value
    except RuntimeError:
        return value


def cache_folder(name: str) -> Path:
    """Return ``$XDG_CACHE_HOME/medsft/NAME``, by default in ``~/.cache``; it may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "medsft" / name
