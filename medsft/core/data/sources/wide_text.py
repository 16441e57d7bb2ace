"""Text with two or four bytes a character (UTF-16, UTF-32), as Windows programs write it, read as UTF-8."""

from __future__ import annotations

import codecs
import io
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer as Buffer

SAMPLE_BYTES = 256
"""So much of a file shows its encoding."""
_PART_BYTES = 2**16


def wide_encoding(head: bytes) -> str:
    """Return the name of a Unicode encoding with two or four bytes a character that a file begins in, empty for another."""
    if head.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "utf-32"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    sample = head[:SAMPLE_BYTES]
    half = len(sample) // 2
    if half > 8:  # without a mark: every second byte of mostly ASCII text is NUL
        if sample[1::2].count(0) > 0.7 * half and _is_text(sample[::2]):
            return "utf-16-le"
        if sample[::2].count(0) > 0.7 * half and _is_text(sample[1::2]):
            return "utf-16-be"
    return ""


def _is_text(low: bytes) -> bool:
    """Whether the low bytes of characters can be those of text: a table in a binary file has zeros and control signs there."""
    return sum(byte < ord(" ") and byte not in b"\t\n\r" for byte in low) < 0.1 * len(low)


class Utf8Stream(io.RawIOBase):
    """A stream of wide text as one of UTF-8.

    Half of a surrogate pair becomes three bytes that are not UTF-8, so that the row with it is refused and no other. Text that
    ends within a character raises UnicodeDecodeError.
    """

    def __init__(self, stream: IO[bytes], encoding: str) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
        self._waiting = b""
        self._made = 0

    def buffered(self) -> io.BufferedReader:
        """Return the stream with `read` and `readline` as files have them."""
        return io.BufferedReader(self, _PART_BYTES)

    def readable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Bytes of UTF-8 so far."""
        return self._made

    def readinto(self, buffer: Buffer) -> int:
        """Fill a buffer as far as there is text; 0 at the end."""
        while not self._waiting:
            raw = self._stream.read(_PART_BYTES)
            self._waiting = self._decoder.decode(raw, final=not raw).encode("utf-8", "surrogatepass")
            if not raw and not self._waiting:
                return 0
        view = memoryview(buffer)
        part = self._waiting[: len(view)]
        view[: len(part)] = part
        self._waiting = self._waiting[len(part) :]
        self._made += len(part)
        return len(part)
