"""Documents of a set, decoded for people to look at, cut where the role changes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from medsft.core.data.dataset.dataset import TokenizedDataset
from medsft.core.data.tokenizers.base import Tokenizer
from medsft.core.data.tokenizers.template import Role


@dataclass(frozen=True, slots=True)
class SamplePart:
    """Consecutive tokens of one role."""

    role: Role
    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One document, decoded."""

    document: int
    length: int
    """Tokens"""
    parts: tuple[SamplePart, ...]


def samples(data: TokenizedDataset, tokenizer: Tokenizer, documents: Iterable[int]) -> list[Sample]:
    """Decode documents for people to look at, cut where the role changes."""
    return [_sample(data, tokenizer, document) for document in documents]


def _sample(data: TokenizedDataset, tokenizer: Tokenizer, document: int) -> Sample:
    tokens, roles = data.tokens(document), data.roles(document)
    cuts: list[int] = [0, *(np.flatnonzero(np.diff(roles)) + 1).tolist(), len(roles)]
    parts = [_part(tokenizer, tokens[a:b], Role(int(roles[a]))) for a, b in pairwise(cuts) if a < b]
    return Sample(document, len(tokens), tuple(parts))


def _part(tokenizer: Tokenizer, tokens: npt.NDArray[Any], role: Role) -> SamplePart:
    return SamplePart(role, tokenizer.decode(tokens.tolist()), len(tokens))
