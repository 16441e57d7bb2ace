"""How many documents of each file an epoch takes, where files of `--data` have shares."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medsft.core.config.run_config import RunConfig
from medsft.core.data.dataset.subset import Subset
from medsft.core.planning.order import FileShare
from medsft.core.planning.plan import MixturePart
from medsft.errors import DataError


def documents_taken(share: float, documents: int) -> int:
    """Return how many documents an epoch takes of a file that has `documents`: their share, at least one."""
    return max(1, round(Fraction(repr(float(share))) * documents))  # as typed, in decimals: 0.35 of 10 is 3.5


def file_shares(
    config: RunConfig,
    shares: Sequence[float],
    input_documents: Sequence[int] | None,
    documents: npt.NDArray[np.int64],
) -> tuple[FileShare, ...]:
    """Return what each file gives to an epoch of these `documents` of a set, ascending.

    `input_documents` are those of each file in the set. Raises `DataError` for a set that does not tell them, and for a file
    of which no document is used.
    """
    if not shares:
        return ()
    if input_documents is None or len(input_documents) != len(shares):
        raise DataError(
            "--data: the tokenized set does not say how many documents each file gave, so shares cannot be taken",
            hint="tokenize again with --retokenize",
        )
    ends = np.searchsorted(documents, np.cumsum(input_documents))
    used = np.diff(ends, prepend=0).tolist()
    for number, (available, share) in enumerate(zip(used, shares, strict=True)):
        if not available:
            name = config.data_files[number] if number < len(config.data_files) else f"file {number + 1}"
            raise DataError(f"--data: no document of {name} is used, so a share of {share:g} cannot be taken")
    return tuple(FileShare(n, documents_taken(share, n)) for n, share in zip(used, shares, strict=True))


def mixture_parts(
    files: Sequence[Path], shares: Sequence[float], mixture: Sequence[FileShare], subset: Subset
) -> tuple[MixturePart, ...]:
    """Return what a plan says of each file of a mixture."""
    parts, first = [], 0
    for file, share, (documents, taken) in zip(files, shares, mixture, strict=bool(mixture)):
        here = slice(first, first + documents)
        times = taken / documents
        parts.append(
            MixturePart(
                file=file.name,
                share=share,
                available=documents,
                documents=taken,
                tokens=round(times * int(subset.lengths[here].sum())),
                labels=round(times * int(subset.num_labels[here].sum())),
                supervised_tokens=round(times * int(subset.answer_labels[here].sum())),
            )
        )
        first += documents
    return tuple(parts)
