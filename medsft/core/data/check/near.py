"""Near repeats: rows whose sets of three-word runs have a Jaccard similarity of about 0.8 or more, by MinHash and bands (LSH).

    MinHash (120 hashes) --20 bands of 6--> two rows with an equal band are compared by all 120 --> groups

Two rows of similarity 0.8 meet in a band with a chance of 99.8 %, those of 0.5 with 27 %; the comparison then decides. The keys
lie in temporary files without a name, so that memory does not grow with them and nothing is left behind: 280 bytes a row.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from typing import IO

import numpy as np
import numpy.typing as npt

from medsft.core.data.check.libraries import HASHES, Signatures
from medsft.core.data.check.words import Hashes, combined

BANDS = 20
_ROWS = HASHES // BANDS
SIMILARITY = 0.8
_BY_CHANCE = 1 / 256
"""Of two unequal hashes so many have the same lowest byte."""
_COMPARED_AT_ONCE = 2**16


def band_keys(signatures: Signatures) -> Hashes:
    """Return a number for each band of each row, [rows, BANDS]; never 0, which stands for a row that is not compared."""
    columns = signatures.reshape(-1, BANDS, _ROWS).astype(np.uint64)
    return combined([columns[:, :, place] for place in range(_ROWS)]) | np.uint64(1)


class NearRepeats:
    """Collects the keys of all rows and then finds the groups. Use it as a context."""

    def __init__(self) -> None:
        self._files = ExitStack()
        self._bands: Sequence[IO[bytes]] = ()
        self._low: IO[bytes] | None = None
        self.rows = 0

    def __enter__(self) -> NearRepeats:
        """Open the temporary files."""
        *self._bands, self._low = (self._files.enter_context(tempfile.TemporaryFile()) for _ in range(BANDS + 1))  # noqa: SIM115
        return self

    def __exit__(self, *_: object) -> None:
        """Close them, which removes them."""
        self._files.close()

    def add(self, bands: Hashes, low: npt.NDArray[np.uint8]) -> None:
        """Take the keys and the low bytes of further rows."""
        assert self._low is not None
        for band, file in enumerate(self._bands):
            file.write(np.ascontiguousarray(bands[:, band]).tobytes())
        self._low.write(low.tobytes())
        self.rows += len(bands)

    def earlier(self) -> npt.NDArray[np.int64]:
        """Return for each row the first row of its group, which is the row itself where it is like no other, [rows]."""
        groups = np.arange(self.rows)
        if not self.rows:
            return groups
        assert self._low is not None
        self._low.flush()
        low = np.memmap(self._low, np.uint8, "r", shape=(self.rows, HASHES))
        for file in self._bands:
            file.seek(0)
            keys = np.fromfile(file, np.uint64)
            for first, second in _meetings(keys):
                _join(groups, first, second, low)
        return groups


def _meetings(keys: Hashes) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Return pairs of rows with an equal key: each row with the first one of its key, and with the one before it."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    same = np.flatnonzero((ordered[1:] == ordered[:-1]) & (ordered[1:] != 0)) + 1
    if not len(same):
        return []
    begins = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    firsts = begins[np.searchsorted(begins, same, side="right") - 1]
    return [(order[firsts], order[same]), (order[same - 1], order[same])]


def _join(
    groups: npt.NDArray[np.int64], first: npt.NDArray[np.int64], second: npt.NDArray[np.int64], low: npt.NDArray[np.uint8]
) -> None:
    """Put rows that are alike into one group, in place; a group is named after its first row."""
    apart = groups[first] != groups[second]
    first, second = first[apart], second[apart]
    for begin in range(0, len(first), _COMPARED_AT_ONCE):
        a, b = first[begin : begin + _COMPARED_AT_ONCE], second[begin : begin + _COMPARED_AT_ONCE]
        equal = (low[a] == low[b]).mean(axis=1)
        alike = (equal - _BY_CHANCE) / (1 - _BY_CHANCE) >= SIMILARITY
        for one, other in zip(a[alike].tolist(), b[alike].tolist(), strict=True):
            one, other = _root(groups, one), _root(groups, other)
            if one != other:
                groups[max(one, other)] = min(one, other)
    while not np.array_equal(groups, above := groups[groups]):
        groups[:] = above


def _root(groups: npt.NDArray[np.int64], row: int) -> int:
    while (above := int(groups[row])) != row:
        row = above
    return row
