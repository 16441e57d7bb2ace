"""A file of `torch.save` whose tensors are filled in afterwards, piece by piece.

A rank of a large model does not fit into memory beside what it is made from. So the file is laid out first, with room for
every tensor, and the bytes are written to their places as they come. The checksums of the zip records, which torch computes
while it writes, are set at the end.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DESCRIPTOR, _ENTRY = b"PK\x07\x08", b"PK\x01\x02"


class ReservedFile:
    """A torch zip file with its tensors still to come."""

    def __init__(self, path: Path, content: Any, tensors: Mapping[str, Tensor]) -> None:
        """Lay out `path` as `torch.save(content)` would.

        `tensors` are those inside `content` (nested dicts, lists and tuples) that `append` will fill, by name; each has a
        storage of its own. Their values are not looked at, so `torch.empty` costs no memory. All others are written now.
        """
        # By way of Python's file: torch's own says of a full disk only that something is wrong.
        with torch.serialization.skip_data(), path.open("wb") as file:
            torch.save(content, file)
        self.path = path
        self._file = path.open("r+b")
        self._start: dict[str, int] = {}
        self._size: dict[str, int] = {}
        self._filled: dict[str, int] = {}
        self._checksum: dict[str, int] = {}
        names = {id(tensor): name for name, tensor in tensors.items()}
        with zipfile.ZipFile(path) as archive:
            starts = {record.filename.partition("/")[2]: self._record_start(record) for record in archive.infolist()}
        for number, tensor in enumerate(_tensors_in(content)):
            name = names.get(id(tensor), f"constant {number}")
            self._start[name] = starts[f"data/{number}"]
            self._size[name] = tensor.nbytes
            self._filled[name] = self._checksum[name] = 0
            if id(tensor) not in names:
                self.append(name, tensor)

    def append(self, name: str, part: Tensor) -> None:
        """Write the next elements of a tensor; its parts come in the order of its elements."""
        data = part.contiguous().view(-1).view(torch.uint8).numpy().data
        self._checksum[name] = zlib.crc32(data, self._checksum[name])
        while data:  # one call writes at most 2 GiB
            written = os.pwrite(self._file.fileno(), data, self._start[name] + self._filled[name])
            self._filled[name] += written
            data = data[written:]

    def close(self) -> None:
        """Set the checksums and make the file durable. Every tensor has to be complete."""
        short = [name for name, size in self._size.items() if self._filled[name] != size]
        assert not short, f"not filled: {short}"
        checksums = {self._start[name]: checksum for name, checksum in self._checksum.items()}
        with zipfile.ZipFile(self.path) as archive:
            records = {record.filename: record for record in archive.infolist()}
            directory = archive.start_dir
        names = {name: self._record_start(record) for name, record in records.items()}
        for name, start in names.items():
            if start in checksums:
                self._set_descriptor(start + records[name].file_size, checksums[start])
        self._set_directory(directory, {name: checksums[start] for name, start in names.items() if start in checksums})
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def _record_start(self, record: zipfile.ZipInfo) -> int:
        """Return where the bytes of a record begin: after its local header, name and padding."""
        header = os.pread(self._file.fileno(), 30, record.header_offset)
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        return record.header_offset + 30 + name_length + extra_length

    def _set_descriptor(self, offset: int, checksum: int) -> None:
        """torch writes the checksum behind the record, not into the header in front of it."""
        assert os.pread(self._file.fileno(), 4, offset) == _DESCRIPTOR
        os.pwrite(self._file.fileno(), struct.pack("<I", checksum), offset + 4)

    def _set_directory(self, offset: int, checksums: Mapping[str, int]) -> None:
        while (entry := os.pread(self._file.fileno(), 46, offset))[:4] == _ENTRY:
            name_length, extra_length, comment_length = struct.unpack("<HHH", entry[28:34])
            name = os.pread(self._file.fileno(), name_length, offset + 46).decode()
            if name in checksums:
                os.pwrite(self._file.fileno(), struct.pack("<I", checksums[name]), offset + 16)
            offset += 46 + name_length + extra_length + comment_length


def _tensors_in(content: Any) -> Iterator[Tensor]:
    """Yield tensors in the order in which they are pickled, which is the order of their records."""
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, dict):
        for value in content.values():
            yield from _tensors_in(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from _tensors_in(value)
