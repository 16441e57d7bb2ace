"""Words of texts, and hashes of runs of words (n-grams), by which texts are compared.

A word is a run of letters and digits in lower case; in scripts without spaces between words (Chinese, Japanese, Thai,
Khmer, Lao, Burmese) each character is one. So punctuation, spaces, case and the width of characters make no difference.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from hashlib import blake2b
from itertools import chain

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Offsets = npt.NDArray[np.int64]

_NO_SPACES = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_NO_SPACES}]|[^\W{_NO_SPACES}]+")
_ASCII_WORD = re.compile(r"\w+", re.ASCII)
_KEPT_WORDS = 2**19
"""Hashes of so many words are kept at a time, some 60 MB."""
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xC2B2AE3D27D4EB4F)
_SHIFT = np.uint64(29)


def words_in(listed: str) -> frozenset[str]:
    """Return the words of a list that is written with spaces."""
    return frozenset(listed.split())


def words_of(text: str) -> list[str]:
    """Return the words of a text in their order."""
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def text_hash(words: Sequence[str]) -> int:
    """Return a number of 64 bits, equal for equal words in the same order."""
    return int.from_bytes(blake2b(" ".join(words).encode("utf-8", "replace"), digest_size=8).digest(), "little")


class WordHashes(dict[str, int]):
    """The hash of each word, made when it is first asked for. The same in every process."""

    def __missing__(self, word: str) -> int:
        """Make the hash of a word."""
        if len(self) >= _KEPT_WORDS:
            self.clear()
        made = self[word] = text_hash((word,))
        return made

    def flat(self, texts: Sequence[Sequence[str]]) -> tuple[Hashes, Offsets]:
        """Return the hashes of the words of all texts end to end, and where each text begins and the last one ends."""
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        return np.fromiter(map(self.__getitem__, chain.from_iterable(texts)), np.uint64, int(offsets[-1])), offsets


def mixed(values: Hashes) -> Hashes:
    """Return well-spread numbers: every bit of a value moves about half of the bits."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> _SHIFT)) * _MIX
        return values ^ (values >> _SHIFT)


def combined(columns: Sequence[Hashes]) -> Hashes:
    """Return one hash for each row of some columns; their order matters."""
    total = np.zeros_like(columns[0])
    with np.errstate(over="ignore"):
        for column in columns:
            total = total * _FACTOR + column
    return mixed(total)


def ngrams(hashes: Hashes, offsets: Offsets, n: int) -> tuple[Hashes, Offsets]:
    """Return the hash of each run of n words of each text, end to end, and where each text's begin.

    A text of fewer words has one, of all its words; a text without a word has none.
    """
    lengths = np.diff(offsets)
    counts = np.where(lengths > 0, np.maximum(lengths - n + 1, 1), 0)
    begins = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    text = np.repeat(np.arange(len(lengths)), counts)
    starts = np.arange(int(begins[-1])) - begins[text] + offsets[text]
    padded = np.concatenate([hashes, np.zeros(n, np.uint64)])
    columns = [padded[starts + k] for k in range(n)]
    if (lengths < n).any():
        ends = offsets[text + 1]
        columns = [np.where(starts + k < ends, column, np.uint64(0)) for k, column in enumerate(columns)]
    return combined(columns), begins
