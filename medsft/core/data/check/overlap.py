"""Overlap with other rows (validation, benchmarks) by n-grams of words, as contamination is measured.

A row overlaps with a reference row when their texts are equal, when half of the row's n-grams are among those of all
reference rows, or when it has half of the n-grams of one reference row. N-grams that many reference rows have (a question's
frame) count for nothing. Of a very large reference only a part of all n-grams is kept, chosen by their hash, on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from medsft.core.data.check.words import Hashes, Offsets, mixed

SHARE = 0.5
_MOST_GRAMS = 30_000_000
"""Some 0.7 GB while they are sorted; a third of it later."""
_FRAME_ROWS, _FRAME_SHARE = 3, 0.02
"""An n-gram that more rows than both of these have is part of a frame."""


@dataclass(frozen=True, slots=True)
class Shared:
    """Which rows overlap with a reference row."""

    rows: npt.NDArray[np.int64]
    """Their places in the block"""
    reference: npt.NDArray[np.int64]
    """For each the reference row that it has most in common with"""


class References:
    """Collects the n-grams of reference rows."""

    def __init__(self) -> None:
        self._grams: list[Hashes] = []
        self._rows: list[npt.NDArray[np.uint32]] = []
        self._exact: list[Hashes] = []
        self._kept = 0
        self._halvings = 0
        self.rows = 0

    def add(self, grams: Hashes, begins: Offsets, exact: Hashes) -> None:
        """Take further rows: their n-grams, where those of each begin, and their exact hashes (0 for none)."""
        rows = np.repeat(np.arange(self.rows, self.rows + len(exact), dtype=np.uint32), np.diff(begins))
        kept = _kept(grams, self._halvings)
        self._grams.append(grams[kept])
        self._rows.append(rows[kept])
        self._exact.append(exact)
        self._kept += int(kept.sum())
        self.rows += len(exact)
        while self._kept > _MOST_GRAMS:
            self._halvings += 1
            grams, all_rows = np.concatenate(self._grams), np.concatenate(self._rows)
            kept = _kept(grams, self._halvings)
            self._grams, self._rows, self._kept = [grams[kept]], [all_rows[kept]], int(kept.sum())

    @contextmanager
    def index(self) -> Iterator[Path]:
        """Give a folder with the index, which is there as long as the block runs. It holds hashes only."""
        grams = np.concatenate([np.zeros(0, np.uint64), *self._grams])
        rows = np.concatenate([np.zeros(0, np.uint32), *self._rows])
        order = np.lexsort((rows, grams))
        grams, rows = grams[order], rows[order]
        new_pair = np.ones(len(grams), bool)
        new_pair[1:] = (grams[1:] != grams[:-1]) | (rows[1:] != rows[:-1])
        grams, rows = grams[new_pair], rows[new_pair]
        unique, firsts, counts = np.unique(grams, return_index=True, return_counts=True)
        rare = counts <= max(_FRAME_ROWS, _FRAME_SHARE * self.rows)
        sizes = np.bincount(rows[np.repeat(rare, counts)], minlength=self.rows)
        exact = np.concatenate([np.zeros(0, np.uint64), *self._exact])
        exact_order = np.argsort(exact, kind="stable")
        with TemporaryDirectory(prefix="medsft-check-") as folder:
            made = ReferenceIndex(
                grams=unique[rare],
                first_rows=rows[firsts[rare]],
                frame=unique[~rare],
                sizes=sizes,
                exact=exact[exact_order],
                exact_rows=exact_order,
                halvings=np.array(self._halvings),
            )
            for field in fields(made):
                np.save(Path(folder) / f"{field.name}.npy", getattr(made, field.name))
            yield Path(folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceIndex:
    """The n-grams of reference rows, sorted."""

    grams: Hashes
    first_rows: npt.NDArray[np.uint32]
    """The first row with each n-gram"""
    frame: Hashes
    """N-grams that count for nothing"""
    sizes: npt.NDArray[np.int64]
    """How many n-grams each row has"""
    exact: Hashes
    exact_rows: npt.NDArray[np.int64]
    halvings: npt.NDArray[np.int64]
    """A number: n-grams whose hash begins with so many zero bits are kept, all of them for 0"""

    @classmethod
    def open(cls, folder: Path) -> ReferenceIndex:
        """Return the index that `References.index` made. All processes that open it share its memory."""
        return cls(**{field.name: np.load(folder / f"{field.name}.npy", mmap_mode="r") for field in fields(cls)})

    def shared(self, grams: Hashes, begins: Offsets, exact: Hashes) -> Shared:
        """Return which rows, given as to `References.add`, overlap."""
        count = len(exact)
        rows = np.repeat(np.arange(count), np.diff(begins))
        kept = _kept(grams, int(self.halvings)) & (_places(self.frame, grams) < 0)
        grams, rows = grams[kept], rows[kept]
        places = _places(self.grams, grams)
        hit = places >= 0
        per_row, hits = np.bincount(rows, minlength=count), np.bincount(rows[hit], minlength=count)
        overlapping = (hits > 0) & (hits >= SHARE * per_row)
        best = np.full(count, -1)
        # each n-gram of a row once, then how many each pair of rows has in common
        pairs = np.unique(np.stack([rows[hit], places[hit]], axis=1), axis=0)
        references = self.first_rows[pairs[:, 1]].astype(np.int64)
        together, common = np.unique(np.stack([pairs[:, 0], references], axis=1), axis=0, return_counts=True)
        for place in np.argsort(common, kind="stable"):
            row, reference = together[place]
            best[row] = reference
            overlapping[row] |= common[place] >= SHARE * self.sizes[reference]
        same = _places(self.exact, exact)
        found = (same >= 0) & (exact != 0)
        best[found] = self.exact_rows[same[found]]
        overlapping |= found
        chosen = np.flatnonzero(overlapping)
        return Shared(chosen, best[chosen])


def _kept(grams: Hashes, halvings: int) -> npt.NDArray[np.bool_]:
    if not halvings:
        return np.ones(len(grams), bool)
    return mixed(grams) >> np.uint64(64 - halvings) == 0


def _places(ordered: Hashes, wanted: Hashes) -> npt.NDArray[np.int64]:
    """Return where each number first stands in an ordered array; -1 for those that do not."""
    if not len(ordered):
        return np.full(len(wanted), -1)
    places = np.searchsorted(ordered, wanted)
    found = ordered[np.minimum(places, len(ordered) - 1)] == wanted
    return np.where(found, places, -1)
