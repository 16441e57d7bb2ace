"""The bytes of an input file: unpacked where it is packed, as UTF-8 where its text has two or four bytes a character."""

from __future__ import annotations

import bz2
import gzip
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from medsft.core.data.sources.wide_text import SAMPLE_BYTES, Utf8Stream, wide_encoding
from medsft.core.units import byte_size
from medsft.errors import DataError

MAX_UNPACKED_RATIO = 200
"""Text packs to a tenth, the same row again and again to a hundredth, gzip's most is a thousandth."""
_RATIO_FROM_BYTES = 2**26
"""Below this much unpacked text no ratio is worth a word; rows of two bytes take half a minute up to here."""


@dataclass(frozen=True, slots=True)
class Packing:
    """A way in which files are packed."""

    name: str
    magics: Sequence[bytes]
    """What a packed file begins with, one of these."""
    open: Callable[[IO[bytes]], IO[bytes]]
    """Return the unpacked stream; raise ImportError without the package that unpacks."""


def _open_zstd(raw_stream: IO[bytes]) -> IO[bytes]:
    if sys.version_info >= (3, 14):
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]
    else:
        from backports import zstd
    return cast(IO[bytes], zstd.ZstdFile(raw_stream))


def _open_xz(raw_stream: IO[bytes]) -> IO[bytes]:
    return cast(IO[bytes], lzma.LZMAFile(raw_stream))


_SKIPPABLE_ZSTD = tuple(bytes((low, 0x2A, 0x4D, 0x18)) for low in range(0x50, 0x60))
"""Frames that hold no data; parallel compressors write one at the beginning (RFC 8878, 3.1.2)."""
_PACKINGS = (
    Packing("gzip", (b"\x1f\x8b",), lambda raw_stream: cast(IO[bytes], gzip.GzipFile(fileobj=raw_stream))),
    Packing("zstd", (b"\x28\xb5\x2f\xfd", *_SKIPPABLE_ZSTD), _open_zstd),
    Packing("bzip2", (b"BZh",), lambda raw_stream: cast(IO[bytes], bz2.BZ2File(raw_stream))),
    Packing("xz", (b"\xfd7zXZ\0",), _open_xz),
)
_MAGIC_BYTES = 6


def packing_of(head: bytes) -> Packing | None:
    """Return how a file that begins so is packed, None for one that is not."""
    return next((packing for packing in _PACKINGS if head.startswith(tuple(packing.magics))), None)


def refuse_flood(path: Path, stream: IO[bytes], raw_stream: IO[bytes]) -> None:
    """Raise DataError for packed data that unpacks to so much more that it was made for that, or is damaged."""
    if stream is not raw_stream:
        refuse_ratio(path, stream.tell(), raw_stream.tell())


def refuse_ratio(path: Path, unpacked: int, packed: int) -> None:
    """Raise DataError when so many bytes out of so few are more than rows can give."""
    if unpacked >= _RATIO_FROM_BYTES and unpacked > MAX_UNPACKED_RATIO * packed:
        raise DataError(
            f"{path} unpacks to more than {MAX_UNPACKED_RATIO} times its size ({byte_size(unpacked)} so far)",
            hint="if that is right, unpack it and give the result",
        )


@contextmanager
def open_stream(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The stream of unpacked bytes, and the file below the stream, whose position tells how far reading has come.

    Text in UTF-16 or UTF-32 comes as UTF-8 without a byte order mark; any other bytes come as they are. Both streams are the
    same for a file that is read as it is. Raises DataError for what is no file and while reading.
    """
    if "\0" in str(path):  # of a TOML file
        raise DataError("a path in --data or --val has a NUL in it", hint="correct the path")
    packing: Packing | None = None
    try:
        if path.exists() and not path.is_file():
            raise _no_file(path)
        with path.open("rb") as raw_stream:
            packing = packing_of(raw_stream.read(_MAGIC_BYTES))
            raw_stream.seek(0)
            stream = _unpacked(path, raw_stream, packing)
            encoding = wide_encoding(stream.read(SAMPLE_BYTES))
            stream.seek(0)
            yield (cast(IO[bytes], Utf8Stream(stream, encoding).buffered()) if encoding else stream), raw_stream
    except UnicodeDecodeError as error:
        encoding = error.encoding.upper()
        raise DataError(f"{path}: the {encoding} text ends early or is damaged", hint="copy the file again") from None
    except OSError as error:
        if packing and error.errno is None:  # how gzip and bz2 say that data is damaged
            raise _damaged(path, packing) from None
        reason = error.strerror or str(error)
        raise DataError(f"{path}: cannot be read: {reason}", hint="check the paths after --data and --val") from None
    except Exception as error:
        if packing and (isinstance(error, (EOFError, zlib.error, lzma.LZMAError)) or type(error).__name__ == "ZstdError"):
            raise _damaged(path, packing) from None
        raise


def _unpacked(path: Path, raw_stream: IO[bytes], packing: Packing | None) -> IO[bytes]:
    try:
        return packing.open(raw_stream) if packing else raw_stream
    except ImportError:
        raise DataError(
            f"{path} is packed with zstd, and the package that unpacks it is not installed",
            hint="pip install 'medsft[zstd]', or unpack the file: zstd -d",
        ) from None


def _damaged(path: Path, packing: Packing) -> DataError:
    return DataError(f"{path}: the {packing.name} data ends early or is damaged", hint="copy the file again")


def _no_file(path: Path) -> DataError:
    if path.is_dir():
        return DataError(f"{path} is a folder, not a file", hint=f"name the files in it, such as {path}/*.jsonl")
    return DataError(
        f"{path} is a pipe or a device, not a file: rows are read more than once",
        hint="write them to a file and give that",
    )
