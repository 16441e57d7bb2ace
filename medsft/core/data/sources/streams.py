"""The bytes of an input file, unpacked where it is gzipped."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from medsft.core.units import byte_size
from medsft.errors import DataError

MAX_UNPACKED_RATIO = 200
"""Text packs to a tenth, the same row again and again to a hundredth, gzip's most is a thousandth."""
_RATIO_FROM_BYTES = 2**26
"""Below this much unpacked text no ratio is worth a word; rows of two bytes take half a minute up to here."""
_GZIP_MAGIC = b"\x1f\x8b"


def refuse_flood(path: Path, stream: IO[bytes], raw_stream: IO[bytes]) -> None:
    """Raise DataError for packed data that unpacks to so much more that it was made for that, or is damaged."""
    if stream is raw_stream or (unpacked := stream.tell()) < _RATIO_FROM_BYTES:
        return
    if unpacked > MAX_UNPACKED_RATIO * raw_stream.tell():
        raise DataError(
            f"{path} unpacks to more than {MAX_UNPACKED_RATIO} times its size ({byte_size(unpacked)} so far)",
            hint="if that is right, unpack it with gunzip and give the result",
        )


@contextmanager
def open_stream(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The stream of unpacked bytes, and the file below the stream, whose position tells how far reading has come.

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
