"""The tokenizer inside a GGUF file, converted once to a folder with a ``tokenizer.json``.

The conversion is transformers', so it runs as a process of its own: this layer imports neither transformers nor torch.
"""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from medsft.core.disk import writing_to
from medsft.core.files import cache_folder, new_folder
from medsft.errors import DataError, DiskError, ExitCode, MismatchError

_CONVERSION_VERSION = 1
"""To be raised when a file would be converted otherwise: what was kept is not used again."""


def converted_tokenizer(gguf: Path) -> Path:
    """The ``tokenizer.json`` of a GGUF file. Raises DataError when it has no tokenizer that transformers can read.

    Where the user's cache cannot be written, it lies in the folder for temporary files; `DiskError` when not there either.
    """
    status = gguf.stat()
    identity = f"{_CONVERSION_VERSION} {gguf.resolve()} {status.st_size} {status.st_mtime_ns}"
    name = hashlib.sha256(identity.encode()).hexdigest()[:32]
    folder = cache_folder("tokenizers") / name
    try:
        return _kept(gguf, folder)
    except DiskError as error:
        instead = _temporary_folder()
        if instead is None:
            raise
        try:
            return _kept(gguf, instead / name)
        except DiskError:
            raise error from None


def _kept(gguf: Path, folder: Path) -> Path:
    """Return what is in the folder, or convert into it. Raises `DiskError` where that cannot be written."""
    with writing_to(folder.parent, ExitCode.DATA):
        if not (folder / "tokenizer.json").is_file():
            _convert(gguf, folder)
    return folder / "tokenizer.json"


def _temporary_folder() -> Path | None:
    """Return a folder for all processes of this user, None where somebody else has made one of its name, to be read by us."""
    folder = Path(tempfile.gettempdir()) / f"medsft-{os.geteuid()}"
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022:
            return folder
    return None


def _convert(gguf: Path, folder: Path) -> None:
    try:
        with new_folder(folder) as aside:
            _write_tokenizer(gguf, aside)
    except MismatchError:
        if not (folder / "tokenizer.json").is_file():  # else another process was faster
            raise


def _write_tokenizer(gguf: Path, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "medsft.core.engine.commands.gguf_tokenizer", str(gguf.resolve()), str(folder)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == ExitCode.DATA:  # the disk did not take what it wrote; anything else is the file's fault
        message, _, hint = done.stderr.strip().rpartition("\n")
        raise DiskError(message.rpartition("\n")[2], hint=hint.strip(), exit_code=ExitCode.DATA)
    if done.returncode or not (folder / "tokenizer.json").is_file():
        reason = done.stderr.strip().rpartition("\n")[2]
        raise DataError(
            f"{gguf}: its tokenizer cannot be read: {reason}",
            hint="give a tokenizer.json or tokenizer.model of the same model with --tokenizer",
        )
