"""The memory-mapped token files of Megatron-LLM: ``.bin`` holds the numbers, ``.idx`` says where each document is.

``.idx``, little endian, no padding:

    9 bytes   b"MMIDIDX\\0\\0"
    uint64    version, 1
    uint8     code of the number type in ``.bin``
    uint64    n, number of documents
    uint64    m, length of the document index
    int32[n]  numbers in each document
    int64[n]  byte offset of each document in ``.bin``
    int64[m]  document index: 0 .. n, the sequence with which each document begins and where the last one ends, m = n + 1.
              NVIDIA's megatron-core asks for it. Megatron-LLM writes the single value 0, so readers must not rely on it

``.bin`` is the bare concatenation of the documents.
"""

from __future__ import annotations

import hashlib
import os
import struct
from array import array
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from medsft.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
_LEGACY_MAGIC = b"TNTIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_VERSION = 1
_DTYPES: dict[int, npt.DTypeLike] = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f8", 7: "<f8", 8: "<u2"}
_CODES = {np.dtype("u1"): 1, np.dtype("<i4"): 4, np.dtype("<i8"): 5, np.dtype("<u2"): 8}
_LARGEST_UINT16_VOCAB = 65500
_REMEDY = "make the set again with --retokenize"

IntArray = npt.NDArray[np.integer[Any]]


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Number type of the token file for a vocabulary that is not padded: uint16 below 65500 tokens, else int32."""
    return np.dtype("<u2") if vocab_size < _LARGEST_UINT16_VOCAB else np.dtype("<i4")


def bin_path(prefix: Path) -> Path:
    """``prefix.bin``; a dot in the prefix itself stays."""
    return prefix.with_name(prefix.name + ".bin")


def idx_path(prefix: Path) -> Path:
    """``prefix.idx``; a dot in the prefix itself stays."""
    return prefix.with_name(prefix.name + ".idx")


@dataclass(frozen=True, slots=True)
class Written:
    """What a writer left on disk."""

    documents: int
    numbers: int
    sha256: str
    """Of the ``.bin`` file."""


class IndexedWriter:
    """Appends documents to ``prefix.bin``; `close` writes ``prefix.idx`` and syncs both to the disk.

    Without `document_index` the index is Megatron-LLM's, byte for byte.

    Holds 4 bytes a document in memory. Leaving the ``with`` block by an exception writes no index.
    """

    def __init__(self, prefix: Path, dtype: npt.DTypeLike, *, document_index: bool = True) -> None:
        self._prefix = prefix
        self._document_index = document_index
        self._dtype = np.dtype(dtype)
        self._code = _CODES[self._dtype]
        self._sizes = array("i")
        self._numbers = 0
        self._sha256 = hashlib.sha256()
        self._bin = bin_path(prefix).open("wb")

    def __enter__(self) -> IndexedWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bin.close()

    def add(self, numbers: IntArray, sizes: IntArray) -> None:
        """Append documents: `numbers` laid end to end, `sizes` how many belong to each. ValueError if they disagree."""
        if int(sizes.sum()) != len(numbers):
            raise ValueError("the sizes do not add up to the number of elements")
        content = np.ascontiguousarray(numbers, self._dtype).tobytes()
        self._bin.write(content)
        self._sha256.update(content)
        self._sizes.frombytes(np.ascontiguousarray(sizes, "=i4").tobytes())
        self._numbers += len(numbers)

    def close(self) -> Written:
        """Finish both files."""
        self._bin.flush()
        os.fsync(self._bin.fileno())
        self._bin.close()
        sizes = np.frombuffer(self._sizes, "=i4").astype("<i4")
        ends = np.cumsum(sizes, dtype=np.int64) * self._dtype.itemsize
        starts = (ends - sizes.astype(np.int64) * self._dtype.itemsize).astype("<i8")
        with idx_path(self._prefix).open("wb") as index:
            begins = np.arange(len(sizes) + 1 if self._document_index else 1, dtype="<i8")
            index.write(_HEADER.pack(MAGIC, _VERSION, self._code, len(sizes), len(begins)))
            index.write(sizes.tobytes())
            index.write(starts.tobytes())
            index.write(begins.tobytes())
            index.flush()
            os.fsync(index.fileno())
        return Written(len(sizes), self._numbers, self._sha256.hexdigest())


class IndexedReader:
    """Documents of ``prefix.bin`` without copying them, in constant time whatever their number.

    Raises DataError when a file is missing, cut off, of another kind, or the two do not belong together.
    """

    def __init__(self, prefix: Path) -> None:
        self._bin_path, self._idx_path = bin_path(prefix), idx_path(prefix)
        for path in (self._bin_path, self._idx_path):
            if not path.is_file():
                raise DataError(f"{path} is missing: this is not a complete tokenized set", hint=_REMEDY)
        self.dtype, documents, index_length = self._header()
        index = np.memmap(self._idx_path, np.uint8, mode="r")
        after_sizes = _HEADER.size + 4 * documents
        after_starts = after_sizes + 8 * documents
        if len(index) != after_starts + 8 * index_length:
            raise DataError(f"{self._idx_path} is cut off or damaged: its length does not fit its header", hint=_REMEDY)
        self.sizes: npt.NDArray[np.int32] = index[_HEADER.size : after_sizes].view("<i4")
        """Numbers in each document, [n]."""
        self._starts = index[after_sizes:after_starts].view("<i8")
        bin_bytes = self._bin_path.stat().st_size
        expected = int(self._starts[-1]) + int(self.sizes[-1]) * self.dtype.itemsize if documents else 0
        if bin_bytes != expected:
            raise DataError(f"{self._bin_path} has {bin_bytes} bytes where its index says {expected}", hint=_REMEDY)
        self._content: npt.NDArray[Any] = (
            np.memmap(self._bin_path, self.dtype, mode="r") if bin_bytes else np.empty(0, self.dtype)
        )

    def _header(self) -> tuple[np.dtype[Any], int, int]:
        with self._idx_path.open("rb") as index:
            head = index.read(_HEADER.size)
        if head.startswith(_LEGACY_MAGIC):
            raise DataError(
                f"{self._idx_path} has the old TNTIDX format, which is not read",
                hint="tokenize the data again, or convert the set with --dataset_impl mmap of the tool that made it",
            )
        if len(head) < _HEADER.size or not head.startswith(MAGIC):
            raise DataError(f"{self._idx_path} is not an index of tokenized data, or is cut off", hint=_REMEDY)
        _, version, code, documents, index_length = _HEADER.unpack(head)
        if version != _VERSION or code not in _DTYPES:
            raise DataError(f"{self._idx_path} has an unknown version or number type ({version}, {code})", hint=_REMEDY)
        return np.dtype(_DTYPES[code]), documents, index_length

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def nbytes(self) -> int:
        """Size of the ``.bin`` file."""
        return int(self._content.nbytes)

    def __getitem__(self, document: int) -> npt.NDArray[Any]:
        """The numbers of one document, [size], a view of the mapped file."""
        start = int(self._starts[document]) // self.dtype.itemsize
        return self._content[start : start + int(self.sizes[document])]

    def first_numbers(self, documents: npt.NDArray[np.integer[Any]]) -> npt.NDArray[Any]:
        """The first number of each of these documents, none of which may be empty."""
        return self._content[self._starts[documents] // self.dtype.itemsize]

    def span(self, first: int, last: int) -> npt.NDArray[Any]:
        """The numbers of documents first .. last-1 laid end to end, a view of the mapped file."""
        if first >= last:
            return self._content[:0]
        start = int(self._starts[first]) // self.dtype.itemsize
        end = int(self._starts[last - 1]) // self.dtype.itemsize + int(self.sizes[last - 1])
        return self._content[start:end]

    def starts_follow_sizes(self) -> bool:
        """Whether every document begins where the one before it ends. Reads the whole index."""
        ends = np.cumsum(self.sizes, dtype=np.int64) * self.dtype.itemsize
        return not len(self) or (int(self._starts[0]) == 0 and bool(np.array_equal(self._starts[1:], ends[:-1])))
