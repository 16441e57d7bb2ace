"""C sources to a shared library for this processor, kept under a name that says what it was made of.

    ~/.cache/medsft/kernels/SHA256.so

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
from functools import cache
from pathlib import Path

from medsft.core.files import cache_folder

_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")
_COMPILE_SECONDS = 60


def compiled_library(sources: Sequence[Path], defines: Sequence[str] = ()) -> ctypes.CDLL | None:
    """Load the library of `sources`, compiling it where none is kept; None where there is no compiler that can.

    `defines` are macros that the sources ask for.
    """
    flags = [*_FLAGS, *(f"-D{name}" for name in defines)]
    try:
        kept = cache_folder("kernels") / f"{_identity(sources, flags)}.so"
        with suppress(OSError):  # there is none, or a disk has damaged it
            return ctypes.CDLL(str(kept))
        return _compile(sources, flags, kept)
    except (OSError, subprocess.SubprocessError):
        return None


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


def _compile(sources: Sequence[Path], flags: Sequence[str], kept: Path) -> ctypes.CDLL | None:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory(prefix="medsft-") as folder:
        target = Path(folder) / kept.name
        # Threads that share a core with a compiler keep all the others waiting: it takes only what they leave.
        nice = ["nice", "-n", "19"] if shutil.which("nice") else []
        command = [*nice, *compiler.split(), *flags, "-o", str(target), *map(str, sources), "-lm"]
        subprocess.run(command, check=True, capture_output=True, timeout=_COMPILE_SECONDS)
        library = ctypes.CDLL(str(target))
        with suppress(OSError):  # a home that is full or read-only: the next process compiles again
            _keep(target, kept)
        return library


def _keep(target: Path, kept: Path) -> None:
    """Copy a library that could be loaded to where others look for it, whole or not at all."""
    kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(prefix=".keeping-", dir=kept.parent) as aside:
        shutil.copyfile(target, Path(aside) / kept.name).replace(kept)
