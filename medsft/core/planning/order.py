"""Which documents make up each global batch: a pure function of (seed, position), the same for every layout.

Position p of the run is place p % n of the permutation of epoch p // n; iteration k takes positions [k*G, (k+1)*G). Nothing
else decides the order, so a resume needs no state beyond the iteration.

In a mixture an epoch takes k documents of each file: slice [e*k, (e+1)*k) of that file's permutations laid end to end, so that
none is seen again before all of the file have been. The slices of all files are the n documents that the epoch permutes.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class FileShare(NamedTuple):
    """What a file gives to each epoch of a mixture."""

    documents: int
    """Of the file, numbered behind those of the files before it"""
    taken: int
    """In one epoch; may be more than there are"""


@dataclass(frozen=True, slots=True)
class SampleOrder:
    """The documents of each iteration. Documents are numbered 0..n-1 within the selection that is trained on."""

    num_documents: int
    global_batch: int
    seed: int
    numpy_legacy: bool = False
    """Successive permutations of one `RandomState(seed)`, as the original draws them."""
    drawn_before: int = 0
    """That generator has given a permutation of this many documents before the first epoch's: see `hidden_split`."""
    mixture: tuple[FileShare, ...] = ()
    """Of the files, in their order; nothing where an epoch takes each document once."""

    @property
    def epoch_documents(self) -> int:
        """Return how many documents an epoch takes."""
        return sum(share.taken for share in self.mixture) if self.mixture else self.num_documents

    def batch(self, iteration: int) -> np.ndarray:
        """Return the document numbers, int64 [global_batch], of an iteration counted from 0."""
        start = iteration * self.global_batch
        positions = np.arange(start, start + self.global_batch)
        epochs, places = np.divmod(positions, self.epoch_documents)
        result = np.empty(self.global_batch, np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            result[here] = self._permutation(int(epoch))[places[here]]
        return result

    def _permutation(self, epoch: int) -> np.ndarray:
        if self.mixture:
            return _mixed_epoch(self.mixture, self.seed, epoch)
        if self.numpy_legacy:
            return _legacy_permutation(self.num_documents, self.seed, epoch, self.drawn_before)
        return _permutation(self.num_documents, self.seed, epoch)


@lru_cache(maxsize=2)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """Philox is counter-based and keyed, so (seed, epoch) name a stream of their own on every machine."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(n)


@lru_cache(maxsize=2)
def _mixed_epoch(mixture: tuple[FileShare, ...], seed: int, epoch: int) -> np.ndarray:
    """Return the documents of an epoch of a mixture in their order, int64 [documents of an epoch]."""
    slices, first = [], 0
    for file, (documents, taken) in enumerate(mixture):
        slices.append(first + _slice_of_file(documents, seed, file, epoch * taken, (epoch + 1) * taken))
        first += documents
    mixed = np.concatenate(slices)
    return mixed[_permutation(len(mixed), seed, epoch)]


def _slice_of_file(n: int, seed: int, file: int, start: int, end: int) -> np.ndarray:
    """Return places [start, end) of the permutations of n documents laid end to end, int64 [end - start]."""
    passes = [_permutation_of_file(n, seed, file, number) for number in range(start // n, -(-end // n))]
    offset = start // n * n
    return np.concatenate(passes)[start - offset : end - offset]


def _permutation_of_file(n: int, seed: int, file: int, number: int) -> np.ndarray:
    """Philox counts up from the first word of its counter: another last word is a stream that `_permutation` never reaches."""
    return np.random.Generator(np.random.Philox(key=[seed, number], counter=[0, 0, 0, file + 1])).permutation(n)


@lru_cache(maxsize=2)
def _legacy_permutation(n: int, seed: int, epoch: int, drawn_before: int) -> np.ndarray:
    random = np.random.RandomState(seed)
    random.permutation(drawn_before)
    for _ in range(epoch):
        random.permutation(n)
    return random.permutation(n)


def hidden_split(num_documents: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the documents for training, validation and test, each int64, as the original divides one set: 969/30/1.

    It shuffles all documents and cuts. Every part is rounded by itself, and what they are short of the whole, or above it, is
    made up by the first.
    """
    shuffled = np.random.RandomState(seed).permutation(num_documents)
    sizes = [round(share / 1000 * num_documents) for share in (969, 30, 1)]
    sizes[0] += num_documents - sum(sizes)
    train, val, test = np.split(shuffled, np.cumsum(sizes)[:-1])
    return train, val, test


def split_by_hash(hashes: npt.NDArray[np.uint64], share: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions in `hashes` of what is trained on and of about `share` that is validated on, each int64, ascending.

    Each hash decides for itself: more, fewer or other hashes beside it change nothing, and equal ones are on the same side.
    """
    chosen = _mixed(hashes) < np.uint64(int(share * 2**64))
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _mixed(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the hashes with their bits mixed, by the finalizer of SplitMix64 (Steele, Lea, Flood 2014): a bijection.

    Whatever else is decided by the hashes alone is then independent of the split.
    """
    mixed = np.asarray(hashes, np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def deal(lengths: Sequence[int] | np.ndarray, *, num_bins: int) -> list[list[int]]:
    """Deal documents into bins of nearly equal numbers of tokens: longest first, each into the lightest bin.

    `lengths` are token counts; returns for each bin indices into `lengths`, ascending. No bin is empty when there are at least
    as many documents as bins. Ties are broken by index, so every rank computes the same deal.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-int(lengths[i]), i))
    heap = [(0, bin_index) for bin_index in range(num_bins)]
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    for i in order:
        load, target = heapq.heappop(heap)
        bins[target].append(i)
        heapq.heappush(heap, (load + max(1, int(lengths[i])), target))
    return [sorted(b) for b in bins]


def micro_batches_per_rank(num_documents: int, *, dp: int, micro_batch: int) -> int:
    """Return how many micro-batches each rank gets: enough for `micro_batch` documents in each, none empty if possible."""
    return max(1, min(-(-num_documents // (micro_batch * dp)), num_documents // dp))


def deal_to_ranks(lengths: Sequence[int] | np.ndarray, *, dp: int, micro_batch: int) -> list[list[list[int]]]:
    """Return for each data-parallel rank its micro-batches, each a list of indices into `lengths`.

    Every rank gets the same number of micro-batches, `micro_batch` documents in each on average; with fewer documents than
    ranks some get an empty one. Heavy and light bins are dealt alternately, so that neither a micro-batch nor a rank has much
    more to do than another.
    """
    per_rank = micro_batches_per_rank(len(lengths), dp=dp, micro_batch=micro_batch)
    bins = deal(lengths, num_bins=per_rank * dp)
    loads = [sum(int(lengths[i]) for i in b) for b in bins]
    by_load = sorted(range(len(bins)), key=lambda b: (-loads[b], b))
    ranks: list[list[list[int]]] = [[] for _ in range(dp)]
    for turn in range(per_rank):
        row = by_load[turn * dp : (turn + 1) * dp]
        for rank, b in enumerate(row if turn % 2 == 0 else reversed(row)):
            ranks[rank].append(bins[b])
    return ranks


def deal_in_order(num_documents: int, *, dp: int, micro_batch: int) -> list[list[list[int]]]:
    """Return the original's dealing: consecutive blocks of `micro_batch * dp`, rank r taking the r-th part of each."""
    block = micro_batch * dp
    return [
        [
            list(range(start + rank * micro_batch, start + (rank + 1) * micro_batch))
            for start in range(0, num_documents - block + 1, block)
        ]
        for rank in range(dp)
    ]
