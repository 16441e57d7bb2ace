"""The protocol by which weights are read, whatever the file format.

A source gives tensors under Hugging Face names and reads only the slices it is asked for, so a rank that needs a shard reads
a shard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from medsft.core.models.config import ModelConfig

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
"""What weights are computed in and written as, under the names that people type."""
Slices = tuple[slice, ...]
"""One slice for each of the leading dimensions; those left out are read whole."""


class WeightSource(Protocol):
    """A checkpoint on disk, opened for reading."""

    @property
    def config(self) -> ModelConfig:
        """Shape of the model that the weights belong to."""

    def names(self) -> tuple[str, ...]:
        """Return the names of all weights: those of `config.parameter_shapes()`, in its order."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the full shape of a weight."""

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype that `read` gives."""

    def read(self, name: str, slices: Slices | None = None) -> Tensor:
        """Return a weight, or the part of it in `slices`, as a tensor of its own on the CPU."""

    def file(self, name: str) -> Path:
        """Return the file that holds a weight, or the folder where it lies in several: for messages."""

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of the files that hold the weights."""


class SourceAround:
    """A source that gives what another one gives. A class that is made from it says what is different."""

    def __init__(self, source: WeightSource) -> None:
        self._source = source
        self.config: ModelConfig = source.config

    def names(self) -> tuple[str, ...]:
        """Return the names of the other source."""
        return self._source.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the full shape of a weight."""
        return self._source.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype that `read` gives."""
        return self._source.dtype(name)

    def read(self, name: str, slices: Slices | None = None) -> Tensor:
        """Return a weight, or the part of it in `slices`."""
        return self._source.read(name, slices)

    def file(self, name: str) -> Path:
        """Return where a weight lies in the other source."""
        return self._source.file(name)

    def fingerprint(self) -> str:
        """Return the fingerprint of the other source."""
        return self._source.fingerprint()


class FreshSource(SourceAround):
    """A source that is opened anew from time to time.

    Files are memory-mapped, and the pages that were read count as this process's memory until their file is closed.
    """

    def __init__(self, opener: Callable[[], WeightSource]) -> None:
        super().__init__(opener())
        self._opener = opener
        self._read = 0
        self._limit = self.config.num_parameters() * self._source.dtype("model.norm.weight").itemsize // 40

    def read(self, name: str, slices: Slices | None = None) -> Tensor:
        """Return a weight, or the part of it in `slices`."""
        if self._read > self._limit:
            del self._source  # before the next one is opened
            self._source, self._read = self._opener(), 0
        result = self._source.read(name, slices)
        self._read += result.nbytes
        return result


def exact_dtype(source: WeightSource) -> torch.dtype:
    """Return the narrowest dtype that holds every weight of `source` as it is."""
    found = {source.dtype(name) for name in source.names()}
    result = found.pop()
    for dtype in found:
        result = torch.promote_types(result, dtype)
    return result


def sha256_of_files(paths: Iterable[Path]) -> str:
    """Return one SHA-256 (hex) over the names and contents of `paths`, in the order of their names."""
    total = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        status = path.stat()
        total.update(f"{path.name}\0{_sha256(path, status.st_size, status.st_mtime_ns)}\n".encode())
    return total.hexdigest()


@lru_cache(maxsize=1024)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Size and time of change are there to tell a changed file from one that was hashed before."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
