"""Which texts, such as the questions of a benchmark, are among the rows of some files: the reverse of `check --against`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medsft.core.data.check.check import collect_references
from medsft.core.data.check.overlap import ReferenceIndex
from medsft.core.data.check.scan import Scan
from medsft.core.data.check.words import WordHashes, ngrams, words_of
from medsft.core.data.dataset.write import ProgressCallback, ProgressReporter, input_bytes
from medsft.core.data.sources.row_format import RowFormats, format_of

NGRAM = 8
"""Words in a run, as `medsft check` compares rows"""


def among_rows(
    texts: Sequence[str],
    files: Sequence[Path],
    rows: RowFormats,
    *,
    workers: int | None = None,
    progress: ProgressCallback | None = None,
) -> npt.NDArray[np.bool_]:
    """Return which texts overlap with a row of the files, by n-grams as `overlap` says. Raises DataError, LaunchError.

    `rows` is how the files are read: one format, or one for each.
    """
    scan = Scan(ngram=NGRAM, near=False, languages=False)
    reporter = ProgressReporter("check", input_bytes(files), progress or (lambda _: None))
    formats = [(format_of(rows, file),) for file in range(len(files))]
    references, _ = collect_references(scan, files, formats, workers, reporter, 0)
    grams, begins = ngrams(*WordHashes().flat([words_of(text) for text in texts]), NGRAM)
    found = np.zeros(len(texts), bool)
    with references.index() as folder:
        found[ReferenceIndex.open(folder).shared(grams, begins, np.zeros(len(texts), np.uint64)).rows] = True
    return found
