"""Where the elements of a JSON array or object begin and end, found without parsing them, in text that comes in parts.

Strings hide brackets and commas, and a quote after an odd number of backslashes ends no string (RFC 8259). JSON strings hold no
line ends: a line that would end in a string has a quote too few or too many, and its last one is taken for text. So a faulty
row does not hide the rows that follow it, unless all stand on one line.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

_SIGNS = bytes(1 if sign in b",[]{}" else 0 for sign in range(256))
"""For `bytes.translate`: 1 for what may begin, end or separate elements."""
_CHANGE = np.array([{"[": 1, "{": 1, "]": -1, "}": -1}.get(chr(sign), 0) for sign in range(256)], np.int64)

Places = npt.NDArray[np.intp]


class Found(NamedTuple):
    """What a part of the text holds."""

    commas: Places
    """Where the commas between elements are"""
    end: int | None
    """Where the closing bracket is; the commas are those before it"""


class ElementScanner:
    """Goes through the text behind the opening bracket."""

    def __init__(self, close: bytes) -> None:
        self._close = close[0]
        self._depth = 0
        self._in_string = False
        self._depth_without = 0
        """Within a string: the depth if the quote that opened it stood alone"""
        self._escaped = False
        """The next byte stands behind a backslash"""

    def scan(self, content: bytes) -> Found:
        """Find the commas between elements in the next part of the text, and the closing bracket if it is there."""
        signs = np.frombuffer(content, np.uint8)
        quotes = self._quotes(content, signs)
        all_places = np.flatnonzero(np.frombuffer(content.translate(_SIGNS), np.uint8))
        places = all_places[(np.searchsorted(quotes, all_places) + self._in_string) & 1 == 0]
        kinds = signs[places]
        depth = _depths(kinds, self._depth)
        before = np.concatenate(([self._depth], depth))[:-1]
        ends = places[(before == 0) & (kinds == self._close)]
        commas = places[(kinds == ord(",")) & (depth == 0)]
        if len(depth):
            self._depth = int(depth[-1])
        self._in_string ^= bool(len(quotes) & 1)
        if self._in_string:
            hidden = signs[all_places[all_places > quotes[-1]] if len(quotes) else all_places]
            depth = _depths(hidden, self._depth if len(quotes) else self._depth_without)
            self._depth_without = int(depth[-1]) if len(depth) else self._depth if len(quotes) else self._depth_without
        if len(ends):
            return Found(commas[commas < ends[0]], int(ends[0]))
        return Found(commas, None)

    def _quotes(self, content: bytes, signs: npt.NDArray[np.uint8]) -> Places:
        """Where strings begin and end. The last quote of a line that would end within a string is not one of them."""
        quotes = np.flatnonzero(signs == ord('"'))
        escaped = self._escaped_places(content, signs)
        if len(escaped):
            quotes = quotes[~np.isin(quotes, escaped, assume_unique=True)]
        lines = np.flatnonzero(signs == ord("\n"))
        if not len(lines):
            return quotes
        until = np.searchsorted(quotes, lines)
        if self._in_string and until[0] == 0:  # the quote that stands alone is in an earlier part
            self._in_string, self._depth = False, self._depth_without
        counts = np.diff(until, prepend=0)
        counts[0] += self._in_string
        return np.delete(quotes, until[counts & 1 == 1] - 1)

    def _escaped_places(self, content: bytes, signs: npt.NDArray[np.uint8]) -> Places:
        """Places of bytes behind a backslash that is not escaped itself."""
        carried = self._escaped
        self._escaped = False
        first = np.zeros(int(carried), np.intp)
        if b"\\" not in content:
            return first
        slashes = np.flatnonzero(signs == ord("\\"))
        gaps = np.diff(slashes) != 1
        begins, ends = slashes[np.concatenate(([True], gaps))], slashes[np.concatenate((gaps, [True]))]
        lengths = ends - begins + 1
        if carried and begins[0] == 0:
            lengths[0] -= 1
        escaped = ends[lengths & 1 == 1] + 1
        self._escaped = bool(len(escaped)) and bool(escaped[-1] == len(content))
        return np.concatenate((first, escaped))


def _depths(kinds: npt.NDArray[np.uint8], before: int) -> Places:
    """How many brackets are open behind each sign, when `before` were.

    A bracket that closes nothing belongs to its row, which cannot be used; it does not move the depth of later rows.
    """
    depth = np.cumsum(_CHANGE[kinds]) + before
    return depth - np.minimum.accumulate(np.minimum(depth, 0))


def cut(content: bytes, commas: npt.NDArray[Any]) -> list[bytes]:
    """The text before, between and after the commas."""
    begins = [0, *(commas + 1).tolist()]
    ends = [*commas.tolist(), len(content)]
    return [content[begin:end] for begin, end in zip(begins, ends, strict=True)]
