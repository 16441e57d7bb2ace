"""Rows as conversations, out of whole files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from medsft.core.data.sources.bad_rows import BadRows
from medsft.core.data.sources.base import BadRow, all_rows
from medsft.core.data.sources.columns import KeyProposal, proposal, string_names
from medsft.core.data.sources.conversation import Conversation
from medsft.core.data.sources.open import open_rows
from medsft.core.data.sources.row_format import RowFormat

_PROPOSAL_ROWS = 50


def read_conversations(files: Iterable[Path], row_format: RowFormat, *, skip_bad: bool = False) -> Iterator[Conversation]:
    """Stream the conversations of several files in order. Raises DataError at the first bad row, or leaves bad rows out."""
    for path in files:
        source = open_rows(path)
        for row in all_rows(source):
            try:
                yield row_format.conversation(row.fields())
            except BadRow as bad:
                if not skip_bad:
                    found = BadRows()
                    found.add(source.place(row.number), bad)
                    raise found.error() from None


def propose_keys(path: Path) -> KeyProposal:
    """Look at the first rows of a file and propose its keys by their usual names; None where there is no such name.

    Raises DataError when the file cannot be read.
    """
    common: list[str] | None = None
    rows = 0
    for row in all_rows(open_rows(path)):
        try:
            strings = string_names(row.fields())
        except BadRow:
            continue
        common = strings if common is None else [key for key in common if key in strings]
        rows += 1
        if rows == _PROPOSAL_ROWS:
            break
    return proposal(common or ())
