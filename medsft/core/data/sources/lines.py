"""The lines of an input file: plain or gzipped, in constant memory, each with its place.

file --open_lines--> bytes --read_blocks--> whole lines, about a MiB at a time --lines--> Line (file:line)
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from medsft.core.data.sources.file_kind import refuse_other_kinds
from medsft.core.units import byte_size
from medsft.errors import DataError

MAX_LINE_BYTES = 32 * 2**20
"""A longer line is a bad row. It bounds the memory of a chunk; the longest honest document is far shorter."""
MAX_PASSED_OVER_BYTES = 2**30
"""A line that goes on for longer than this is not passed over: there is no end of it to wait for."""
MAX_UNPACKED_RATIO = 200
"""Text packs to a tenth, the same row again and again to a hundredth, gzip's most is a thousandth."""
_RATIO_FROM_BYTES = 2**26
"""Below this much unpacked text no ratio is worth a word; rows of two bytes take half a minute up to here."""
_BLOCK_BYTES = 2**20
_GZIP_MAGIC = b"\x1f\x8b"
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of an input file. ``raw`` is None when it is longer than `MAX_LINE_BYTES`."""

    file: int
    """Index into the list of input files."""
    number: int
    """From 1."""
    raw: bytes | None


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive lines of an input file."""

    file: int
    number: int
    """Of the first line"""
    content: bytes
    overlong: bool
    """Behind them was a line longer than `MAX_LINE_BYTES`, which is not in `content`."""
    bytes_read: int
    """Of the file as it is on disk, so far"""

    def lines(self) -> Iterator[Line]:
        """Yield the lines, without their ends. Blank ones hold no row: left out."""
        lines = self.content.split(b"\n")
        for number, line in enumerate(lines, self.number):
            if line and not line.isspace():
                yield Line(self.file, number, line)
        if self.overlong:
            yield Line(self.file, self.number + len(lines) - 1, None)


def read_blocks(path: Path, file: int = 0) -> Iterator[Block]:
    """Yield a plain or gzipped file about a MiB at a time, in whole lines.

    Raises DataError when the file cannot be read, is of another kind than JSONL, its gzip data is damaged or unpacks without
    end, or a line has no end.
    """
    with open_lines(path) as (stream, raw_stream):
        number = 1
        while content := stream.read(_BLOCK_BYTES):
            refuse_flood(path, stream, raw_stream)
            if number == 1:
                refuse_other_kinds(path, content, packed=stream is not raw_stream)
                content = content.removeprefix(BOM)
            begun = len(content) - content.rfind(b"\n") - 1
            rest = stream.readline(MAX_LINE_BYTES + 1 - begun) if begun else b""
            overlong = begun + len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n")
            content = content[:-begun] if overlong else content + rest
            if overlong:
                _pass_over(stream, path, number + content.count(b"\n"))
            yield Block(file, number, content, overlong, raw_stream.tell())
            number += content.count(b"\n") + overlong


def _pass_over(stream: IO[bytes], path: Path, number: int) -> None:
    """Read the rest of a line that is too long. Raises DataError when it does not end."""
    passed = 0
    while (rest := stream.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
        passed += len(rest)
        if passed > MAX_PASSED_OVER_BYTES:
            raise DataError(
                f"{path}:{number}: this line is longer than {MAX_PASSED_OVER_BYTES // 2**30} GiB",
                hint="JSONL has one JSON object on each line; is this the file that you meant?",
            )


def refuse_flood(path: Path, stream: IO[bytes], raw_stream: IO[bytes]) -> None:
    """Raise DataError for packed data that unpacks to so much more that it was made for that, or is damaged."""
    if stream is raw_stream or (unpacked := stream.tell()) < _RATIO_FROM_BYTES:
        return
    if unpacked > MAX_UNPACKED_RATIO * raw_stream.tell():
        raise DataError(
            f"{path} unpacks to more than {MAX_UNPACKED_RATIO} times its size ({byte_size(unpacked)} so far)",
            hint="if that is right, unpack it with gunzip and give the result",
        )


def read_lines(path: Path, file: int = 0) -> Iterator[Line]:
    """Yield each line of a file that is not blank. Raises DataError as `read_blocks` does."""
    for block in read_blocks(path, file):
        yield from block.lines()


def refuse_unreadable(files: Sequence[Path]) -> None:
    """Raise DataError, before anything is done with any of them, for a file that is not there, not readable or not JSONL."""
    for path in files:
        next(read_blocks(path), None)


@contextmanager
def open_lines(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The stream of unpacked bytes, and the file below it, whose position tells how far reading has come.

    Both are the same for a file that is not packed. Raises DataError for what is no file and while reading.
    """
    if "\0" in str(path):  # of a TOML file
        raise DataError("a path in --data or --val has a NUL in it", hint="correct the path")
    try:
        if path.exists() and not path.is_file():
            raise _no_file(path)
        with path.open("rb") as raw_stream:
            zipped = raw_stream.read(2) == _GZIP_MAGIC
            raw_stream.seek(0)
            yield cast(IO[bytes], gzip.GzipFile(fileobj=raw_stream) if zipped else raw_stream), raw_stream
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise DataError(f"{path}: the gzip data ends early or is damaged", hint="copy the file again") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"{path}: cannot be read: {reason}", hint="check the paths after --data and --val") from None


def _no_file(path: Path) -> DataError:
    if path.is_dir():
        return DataError(f"{path} is a folder, not a file", hint=f"name the files in it, such as {path}/*.jsonl")
    return DataError(
        f"{path} is a pipe or a device, not a file: rows are read more than once",
        hint="write them to a file and give that",
    )
