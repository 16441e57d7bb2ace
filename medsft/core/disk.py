"""What a disk did not let us do, in words for people: the one place that knows a full, a read-only or a forbidden disk.

    OSError, or what a library made of it --trouble--> Trouble(message, hint) --writing_to--> DiskError, with an exit code

A message names the disk (where it is mounted, what is free) and the folder.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from medsft.core.paths import reason
from medsft.core.units import byte_size
from medsft.errors import ConfigError, DiskError, ExitCode, Problem

_PERMISSION = frozenset({errno.EACCES, errno.EPERM})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_KINDS = frozenset({*_PERMISSION, *_FULL, errno.EROFS, errno.EIO, errno.EFBIG, errno.ESTALE})
_IN_RUST = re.compile(r"\(os error (\d+)\)")
"""How libraries in Rust (safetensors, tokenizers) end the text of a failed system call: they raise exceptions of their own."""
_PROBE_BYTES = 1 << 20
_FEW_INODES = 32
_OF_THE_SYSTEM = frozenset({"proc", "sysfs"})
"""File systems that take no files of anybody, though they say that root may write."""
_ELSEWHERE = "Choose another folder."
_MAKE_ROOM = "Make room there, or choose a folder on another disk; then start it again."


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a disk does not take what is written, for a person."""

    message: str
    hint: str


def trouble(error: BaseException, folder: Path) -> Trouble | None:
    """Return why `folder`, or the file that the error names, could not be written; None for errors of other kinds.

    Looks through what the error was raised from, and through the errors that torch collects from the ranks.
    """
    found = _system_error(error, set())
    if found is None:
        return None
    number, name = found
    path = Path(name) if name else folder
    if not path.is_absolute():
        path = Path.cwd() / path
    return _explain(number, path)


def is_full(error: OSError) -> bool:
    """Tell whether an error means that there is no room now, and perhaps later."""
    return error.errno in _FULL


def probe(folder: Path) -> Trouble | None:
    """Write a MiB into a folder and remove it, and return why that cannot be done; None where it can.

    For the moment when something could not be written and nobody could say why.
    """
    path = folder / f".probe.{os.getpid()}"
    try:
        with path.open("wb", buffering=0) as file:
            left = memoryview(bytes(_PROBE_BYTES))
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        if _lacks_inodes(os.statvfs(folder)):
            return _explain(errno.ENOSPC, folder)
    except OSError as error:
        error.filename = None  # the folder is what matters, not the file that tried it
        return trouble(error, folder)
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)
    return None


def refusal(folder: Path) -> Trouble | None:
    """Return why nothing can be made in a folder, which may not exist yet, as far as that is seen without writing."""
    here = Path(os.path.realpath(folder))
    while not here.exists():
        here = here.parent
    if (kind := _mounts().get(mount_of(here))) in _OF_THE_SYSTEM:
        return Trouble(
            f"{mount_of(here)} holds what the system says of itself ({kind}): {folder} cannot be written.", _ELSEWHERE
        )
    if os.access(here, os.W_OK | os.X_OK):
        return None
    read_only = os.statvfs(here).f_flag & os.ST_RDONLY
    return _explain(errno.EROFS if read_only else errno.EACCES, folder)


@contextmanager
def writing_to(folder: Path, exit_code: ExitCode, *, hint: str = "") -> Iterator[None]:
    """Raise `DiskError` with this exit code for what the disk does not let us do inside the block; other errors pass."""
    try:
        yield
    except (DiskError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # torch's CheckpointException is no Exception
        found = trouble(error, folder)
        if found is None:
            raise
        raise DiskError(found.message, hint=hint or found.hint, exit_code=exit_code) from error


@contextmanager
def writing(path: Path, where: str) -> Iterator[None]:
    """Turn what keeps a file that a person named from being written into `ConfigError` under `where`."""
    try:
        yield
    except OSError as error:
        found = trouble(error, path)
        if found is None:
            raise ConfigError([Problem(where, f"{path} cannot be written: {reason(error)}")]) from None
        raise ConfigError([Problem(where, found.message, found.hint)]) from None


def _system_error(error: BaseException | None, seen: set[int]) -> tuple[int, str | None] | None:
    """Return (errno, file name or None) of the failed system call behind an error."""
    if error is None or id(error) in seen:
        return None
    seen.add(id(error))
    if isinstance(error, OSError) and error.errno in _KINDS:
        name = error.filename2 or error.filename  # of a copy: to where, from where
        return error.errno, os.fsdecode(name) if isinstance(name, str | bytes) else None
    if (match := _IN_RUST.search(str(error))) and int(match[1]) in _KINDS:
        return int(match[1]), None
    ranks = getattr(error, "failures", None)  # of torch's CheckpointException: rank -> (error, where)
    causes = [failure[0] for failure in ranks.values()] if isinstance(ranks, dict) else []
    for cause in (*causes, error.__cause__, error.__context__):
        if (found := _system_error(cause, seen)) is not None:
            return found
    return None


def _explain(number: int, path: Path) -> Trouble:
    mount = mount_of(path)
    if number == errno.EDQUOT:
        return Trouble(f"Your quota is used up on the disk {mount}: {path} cannot be written.", _MAKE_ROOM)
    if number == errno.ENOSPC:
        return Trouble(f"The disk is full: {mount} has {_room(mount)}; {path} cannot be written.", _MAKE_ROOM)
    if number == errno.EROFS:
        hint = "Choose a folder that can be written, or mount it for writing; then start it again."
        return Trouble(f"The disk {mount} is read-only: {path} cannot be written.", hint)
    if number in _PERMISSION:
        hint = "Choose another folder, or have its owner allow it (chmod, chown)."
        return Trouble(f"Permission denied: {path}, on the disk {mount}, is not open to user {_user()}.", hint)
    if number == errno.EFBIG:
        return Trouble(f"The disk {mount} takes no file as large as {path}.", "Choose a folder on another file system.")
    return Trouble(
        f"The disk {mount} does not answer ({os.strerror(number)}): {path}.", "Look at the disk, then start it again."
    )


def mount_of(path: Path) -> Path:
    """Return where the file system of a path is mounted; the path may not exist yet."""
    here = Path(os.path.realpath(path))
    mounts = _mounts()
    while here != here.parent and here not in mounts and not os.path.ismount(here):
        here = here.parent
    return here


def _mounts() -> dict[Path, str]:
    """Return the kind of file system that is mounted in each place: of Linux, where a part of a disk may be one of its own.

    Format: proc(5), /proc/PID/mountinfo. `os.path.ismount` alone misses a folder that is mounted within its own disk.
    """
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return {}
    mounts = {}
    for line in lines:
        place, kind = line.split()[4], line.partition(b" - ")[2].partition(b" ")[0]
        plain = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), place)  # a space is \040
        mounts[Path(os.fsdecode(plain))] = os.fsdecode(kind)
    return mounts


def _room(mount: Path) -> str:
    try:
        status = os.statvfs(mount)
    except (OSError, AttributeError):
        return "no room"
    free = f"{byte_size(status.f_bavail * status.f_frsize)} free of {byte_size(status.f_blocks * status.f_frsize)}"
    return f"{status.f_favail or 'no'} inodes left for new files ({free})" if _lacks_inodes(status) else free


def _lacks_inodes(status: os.statvfs_result) -> bool:
    """Tell whether a start of a run would need more new files than a disk takes; some file systems do not count them."""
    return status.f_files > 0 and status.f_favail < _FEW_INODES


def _user() -> str:
    try:
        import pwd

        return pwd.getpwuid(os.geteuid()).pw_name
    except (ImportError, KeyError):
        return str(os.geteuid())
