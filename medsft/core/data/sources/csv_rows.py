"""CSV and its kin: rows of cells with the names of the columns in the first row (RFC 4180; commas, semicolons, tabs or bars).

file --open_stream--> bytes --blocks--> whole rows, about a MiB at a time --rows--> (line, cells by column | reason)

All cells are text, be it an empty one, and a row of nothing but empty ones is no row.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from medsft.core.data.sources.base import BadRow, Block, Row
from medsft.core.data.sources.jsonl import MAX_LINE_BYTES
from medsft.core.data.sources.streams import open_stream, refuse_flood
from medsft.core.units import counted
from medsft.errors import DataError

_BLOCK_BYTES = 2**20
_NEW_LINE = b"\n"
_QUOTE, _LINE_END, _CR = b'"\n\r'


class Record(NamedTuple):
    """What stands between two line ends that are not inside quotes."""

    line: int
    """Lines before it"""
    lines: int
    """Lines that it goes over"""
    cells: list[str] | BadRow
    closed: bool
    """False: a quote is open where the text ends"""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How cells are written."""

    delimiter: str
    spaced: bool = False
    """A space may stand between a delimiter and an opening quote"""

    def records(self, text: str) -> Iterator[Record]:
        """Yield the records of a text, empty ones without cells. After one that cannot be read the next line begins one."""
        csv.field_size_limit(2 * MAX_LINE_BYTES)  # Python's own is 128 KiB, for the whole process
        lines = io.StringIO(text, newline="\n")
        reader = csv.reader(lines, delimiter=self.delimiter, skipinitialspace=self.spaced, strict=True)
        while True:
            line = reader.line_num
            cells: list[str] | BadRow
            try:
                cells, closed = next(reader), True
            except StopIteration:
                return
            except csv.Error as error:
                cells, closed = _bad_record(str(error), reader.line_num - line)
            yield Record(line, reader.line_num - line, cells, closed)

    def ends(self, text: bytes) -> npt.NDArray[np.intp]:
        """Where the line ends are that end a record, of a text that begins with one."""
        signs = np.frombuffer(text, np.uint8)
        ends = np.flatnonzero(signs == _LINE_END)
        quotes = np.flatnonzero(signs == _QUOTE)
        if not len(quotes) or not len(ends):
            return ends
        if self._in_pairs(signs, quotes):
            return ends[np.searchsorted(quotes, ends) & 1 == 0]
        # A quote stands alone inside a cell, and only reading the cells tells. All signs that matter are single bytes in UTF-8.
        records = self.records(text[: int(ends[-1]) + 1].decode("latin-1"))
        return ends[[record.line + record.lines - 1 for record in records if record.closed]]

    def _in_pairs(self, signs: npt.NDArray[np.uint8], quotes: npt.NDArray[np.intp]) -> bool:
        """Whether each quote begins or ends a cell, or is one of two that stand for one."""
        padded = np.concatenate(([_LINE_END], signs, [_LINE_END]))
        before, after = padded[quotes[::2]], padded[quotes[1::2] + 2]
        between = ord(self.delimiter)
        opens = (before == between) | (before == _LINE_END) | (before == _QUOTE)
        closes = (after == between) | (after == _LINE_END) | (after == _CR) | (after == _QUOTE)
        return bool(opens.all() and closes.all())


def _bad_record(error: str, lines: int) -> tuple[BadRow, bool]:
    """The reason of Python's reader in words for people, and whether the record ends where it stopped."""
    if error.startswith("unexpected end"):
        return BadRow(f"a quote is not closed, from here to the end of the file ({lines} lines)"), False
    if "expected after" in error:
        return BadRow("text follows the quote that closes a cell (a quote inside a cell is written twice)"), True
    if error.startswith("new-line"):
        return BadRow("CR alone inside the row (the line ends of old Macs)"), True
    return BadRow("not CSV"), True


@dataclass(frozen=True, slots=True)
class CsvSource:
    """See `RowSource`. A row's number is that of its first line."""

    path: Path
    dialect: Dialect
    columns: tuple[str, ...]
    start: int
    """Bytes up to the first row, of the text as `open_stream` gives it"""
    line: int
    """The first row's"""

    def estimate(self) -> npt.NDArray[np.int64]:
        """The bytes of each row, see `RowSource.estimate`."""
        sizes = [np.zeros(0, np.int64)]
        for block in self.blocks():
            ends = self.dialect.ends(block.content)
            lengths = np.diff(ends, prepend=-1, append=len(block.content)) - 1
            sizes.append(lengths[lengths > len(self.columns)])  # delimiters alone, and a CR, are no row
        return np.concatenate(sizes)

    def blocks(self) -> Iterator[Block]:
        """Yield whole rows, see `RowSource.blocks`. Raises DataError, too, for a row that has no end."""
        number, waiting = self.line, b""
        with open_stream(self.path) as (stream, raw_stream):
            stream.read(self.start)
            while content := stream.read(_BLOCK_BYTES):
                refuse_flood(self.path, stream, raw_stream)
                content = waiting + content
                ends = self.dialect.ends(content)
                end = int(ends[-1]) + 1 if len(ends) else 0
                waiting = content[end:]
                if len(waiting) > MAX_LINE_BYTES:
                    raise DataError(
                        f"{self.path}:{number + content.count(_NEW_LINE, 0, end)}: "
                        f"the row that begins here is longer than {MAX_LINE_BYTES // 2**20} MiB",
                        hint="a quote that opens a cell is not closed; a quote inside a cell is written twice",
                    )
                if end:
                    yield Block(number, content[:end], "", raw_stream.tell())
                    number += content.count(_NEW_LINE, 0, end)
            if waiting:
                yield Block(number, waiting, "", raw_stream.tell())

    def rows(self, block: Block) -> Iterator[Row]:
        """Parse rows, see `RowSource.rows`."""
        try:
            text, broken = block.content.decode("utf-8"), False
        except UnicodeDecodeError:
            text, broken = block.content.decode("utf-8", "surrogateescape"), True
        for record in self.dialect.records(text):
            content = record.cells if isinstance(record.cells, BadRow) else self._fields(record.cells)
            if broken and not isinstance(content, BadRow) and not all(map(_is_text, content.values())):
                content = BadRow("broken UTF-8")
            if content:
                yield Row(block.number + record.line, content)

    def _fields(self, cells: list[str]) -> Mapping[str, object] | BadRow:
        """The cells by their columns, nothing where all are empty."""
        columns = len(self.columns)
        if cells and len(cells) != columns and (len(cells) < columns or any(cells[columns:])):
            return BadRow(f"{counted(len(cells), 'cell')} in {counted(columns, 'column')}")
        return dict(zip(self.columns, cells, strict=False)) if any(cells) else {}

    def place(self, number: int) -> str:
        """``FILE:LINE``, the first of the row's lines."""
        return f"{self.path}:{number}"


def _is_text(cell: object) -> bool:
    try:
        str(cell).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
