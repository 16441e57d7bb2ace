"""C sources to a shared library for this processor, kept under a name that says what it was made of.

    ~/.cache/medsft/kernels/SHA256.so, and SHA256.sha256: the hash of its content

A processor of another model, other sources or another `CC` have another name, so nothing here is ever out of date.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from medsft.core.disk import probe, trouble
from medsft.core.files import cache_folder

_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")
_COMPILE_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Compiled:
    """What came of compiling."""

    library: ctypes.CDLL | None
    identity: str
    """Equal where sources, flags and processor are: then results are the same bit for bit. Empty without a library."""
    disk: str = ""
    """What a full or read-only disk had to do with it, where there is no library for that reason."""


def compile_or_load(sources: Sequence[Path], defines: Sequence[str] = ()) -> Compiled:
    """Load the library of `sources`, compiling it where none is kept, and return it with what is to be said of it.

    There is no library where there is no compiler that can. `defines` are macros that the sources ask for.
    """
    flags = [*_FLAGS, *(f"-D{name}" for name in defines)]
    try:
        identity = _identity(sources, flags)
    except OSError:
        return Compiled(None, "")
    kept = cache_folder("kernels") / f"{identity}.so"
    with suppress(OSError):  # there is none, or a disk has damaged it
        if _is_whole(kept):
            return Compiled(ctypes.CDLL(str(kept)), identity)
    disk = ""
    for place in (None, kept.parent):  # the usual one for temporary files; that may be full
        try:
            library = _compile(sources, flags, kept, place)
            return Compiled(library, identity if library else "")
        except (OSError, subprocess.SubprocessError) as error:
            folder = Path(place or os.environ.get("TMPDIR") or tempfile.gettempdir())
            disk = disk or _disk_trouble(error, folder)
            if not disk:
                break
    return Compiled(None, "", disk)


def _disk_trouble(error: Exception, folder: Path) -> str:
    """Return what kept a compiler from writing, empty where it was something else."""
    if isinstance(error, FileNotFoundError | NotADirectoryError | subprocess.TimeoutExpired):
        return ""
    found = trouble(error, folder) or (probe(folder) if folder.is_dir() else None)
    return found.message if found else ""


def _is_whole(kept: Path) -> bool:
    """Tell whether a kept library is as it was compiled: one bit would be other results without a word."""
    return _hash_path(kept).read_text(encoding="ascii") == hashlib.sha256(kept.read_bytes()).hexdigest()


def _hash_path(kept: Path) -> Path:
    return kept.with_suffix(".sha256")


@cache
def processor() -> str:
    """Return what Linux says of the first processor, its name and abilities among them; elsewhere the architecture alone."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    except OSError:
        return platform.machine()
    stable = (
        "vendor_id",
        "cpu family",
        "model",
        "stepping",
        "flags",
        "Features",
        "CPU ",
    )  # the others are speeds, which change
    return "\n".join(line for line in first.splitlines() if line.startswith(stable))


def _identity(sources: Sequence[Path], flags: Sequence[str]) -> str:
    """Raises `OSError` when a source is missing, as where only byte code was installed."""
    parts = [" ".join(flags), os.environ.get("CC", ""), platform.machine(), processor()]
    headers = sorted(sources[0].parent.glob("*.h"))
    digest = hashlib.sha256("\0".join(parts).encode())
    for path in (*sources, *headers):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _compile(sources: Sequence[Path], flags: Sequence[str], kept: Path, place: Path | None) -> ctypes.CDLL | None:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    if place is not None:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(prefix="medsft-", dir=place) as folder:
        target = Path(folder) / kept.name
        # Threads that share a core with a compiler keep all the others waiting: it takes only what they leave.
        nice = ["nice", "-n", "19"] if shutil.which("nice") else []
        command = [*nice, *compiler.split(), *flags, "-o", str(target), *map(str, sources), "-lm"]
        environment = {**os.environ, "TMPDIR": folder}  # for the compiler's own files
        subprocess.run(command, check=True, capture_output=True, timeout=_COMPILE_SECONDS, env=environment)
        library = ctypes.CDLL(str(target))
        with suppress(OSError):  # a home that is full or read-only: the next process compiles again
            _keep(target, kept)
        return library


def _keep(target: Path, kept: Path) -> None:
    """Copy a library that could be loaded to where others look for it, whole or not at all."""
    kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(prefix=".keeping-", dir=kept.parent) as aside:
        copy, digest = Path(aside) / kept.name, _hash_path(Path(aside) / kept.name)
        shutil.copyfile(target, copy)
        digest.write_text(hashlib.sha256(copy.read_bytes()).hexdigest(), encoding="ascii")
        copy.replace(kept)
        digest.replace(_hash_path(kept))
