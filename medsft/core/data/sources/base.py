"""Where rows come from: the interface behind which every kind of file stands.

    open_rows(path) --> RowSource --blocks--> Block, Block, ... --rows--> Row (number, fields | BadRow)

Whoever reads rows knows neither lines nor columns nor packing: it asks the source. A block can be sent to another process, and
its rows parsed there. A message about a row names its place, what is wrong with it and the keys that it has, never its text: a
row may be about a patient.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt


class BadRow(ValueError):
    """A row that cannot be used; the message is the reason."""

    def __init__(self, reason: str, keys: Sequence[str] = ()) -> None:
        super().__init__(reason)
        self.keys = tuple(keys)
        """Those that the row has, where that helps."""


class EmptyRow(BadRow):
    """A row in which a text that it cannot do without is empty, such as the answer."""


class Row(NamedTuple):
    """One row of a file."""

    number: int
    """Grows from row to row; `RowSource.place` makes of it what people can look up."""
    content: Mapping[str, object] | BadRow
    """See `columns.members` for the objects inside it."""

    def fields(self) -> Mapping[str, object]:
        """The values by their keys. Raises `BadRow` when the row could not be parsed."""
        if isinstance(self.content, BadRow):
            raise self.content
        return self.content


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows of a file, not parsed yet. Only the source that made it knows what its content means."""

    number: int
    """Of the first row"""
    content: bytes
    missing: str
    """Why the row behind them is not in `content`, such as one too long to be held in memory; empty where there is none."""
    bytes_read: int
    """Of the file as it is on disk, so far"""


class RowSource(Protocol):
    """The rows of one file. Small, and can be pickled."""

    @property
    def path(self) -> Path:
        """The file."""

    def estimate(self) -> npt.NDArray[np.int64]:
        """About how many bytes of text each row has, [rows]. Reads the file, but parses nothing. Raises DataError."""

    def blocks(self) -> Iterator[Block]:
        """Yield the file in blocks of about a MiB, in constant memory. Raises DataError when it cannot be read to its end."""

    def rows(self, block: Block) -> Iterator[Row]:
        """Parse the rows of a block. A row that cannot be parsed comes with the reason."""

    def place(self, number: int) -> str:
        """Where a person finds a row, such as ``FILE:LINE``."""


def all_rows(source: RowSource) -> Iterator[Row]:
    """Yield each row of a source in order. Raises DataError as `RowSource.blocks` does."""
    for block in source.blocks():
        yield from source.rows(block)
