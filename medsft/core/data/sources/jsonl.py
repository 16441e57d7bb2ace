"""JSONL: one JSON object on each line, plain or packed.

file --open_stream--> bytes --blocks--> whole lines, about a MiB at a time --rows--> (line number, object | reason)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from medsft.core.data.sources.base import BadRow, Block, Row
from medsft.core.data.sources.json_object import BOM, parsed
from medsft.core.data.sources.streams import open_stream, refuse_flood
from medsft.errors import DataError

MAX_LINE_BYTES = 32 * 2**20
"""A longer line is a bad row. It bounds the memory of a block; the longest honest document is far shorter."""
MAX_PASSED_OVER_BYTES = 2**30
"""A line that goes on for longer than this is not passed over: there is no end of it to wait for."""
_BLOCK_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class JsonlSource:
    """See `RowSource`. A row is a line that is not blank, and its number is the line's."""

    path: Path

    def estimate(self) -> npt.NDArray[np.int64]:
        """The bytes of each line that is not blank, see `RowSource.estimate`."""
        sizes = [np.zeros(0, np.int64)]
        carried = 0
        with open_stream(self.path) as (stream, raw_stream):
            while content := stream.read(_BLOCK_BYTES):
                refuse_flood(self.path, stream, raw_stream)
                ends = np.flatnonzero(np.frombuffer(content, np.uint8) == ord("\n"))
                if not len(ends):
                    carried += len(content)
                    continue
                lengths = np.diff(ends, prepend=-1) - 1
                lengths[0] += carried
                carried = len(content) - int(ends[-1]) - 1
                sizes.append(lengths[lengths > 1])  # "\r" alone is an empty line, too; a file of nothing else takes no memory
        if carried > 1:
            sizes.append(np.array([carried], np.int64))  # a last line without its end
        return np.concatenate(sizes)

    def blocks(self) -> Iterator[Block]:
        """Yield whole lines, see `RowSource.blocks`. Raises DataError, too, for a line that has no end."""
        with open_stream(self.path) as (stream, raw_stream):
            number = 1
            while content := stream.read(_BLOCK_BYTES):
                refuse_flood(self.path, stream, raw_stream)
                if number == 1:
                    content = content.removeprefix(BOM)
                begun = len(content) - content.rfind(b"\n") - 1
                rest = stream.readline(MAX_LINE_BYTES + 1 - begun) if begun else b""
                overlong = begun + len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n")
                content = content[:-begun] if overlong else content + rest
                if overlong:
                    _pass_over(stream, self.place(number + content.count(b"\n")))
                missing = f"line longer than {MAX_LINE_BYTES // 2**20} MiB" if overlong else ""
                yield Block(number, content, missing, raw_stream.tell())
                number += content.count(b"\n") + overlong

    def rows(self, block: Block) -> Iterator[Row]:
        """Parse lines, see `RowSource.rows`."""
        lines = block.content.split(b"\n")
        for number, line in enumerate(lines, block.number):
            if line and not line.isspace():
                yield Row(number, parsed(line))
        if block.missing:
            yield Row(block.number + len(lines) - 1, BadRow(block.missing))

    def place(self, number: int) -> str:
        """``FILE:LINE``."""
        return f"{self.path}:{number}"


def _pass_over(stream: IO[bytes], place: str) -> None:
    """Read the rest of a line that is too long. Raises DataError when it does not end."""
    passed = 0
    while (rest := stream.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
        passed += len(rest)
        if passed > MAX_PASSED_OVER_BYTES:
            raise DataError(
                f"{place}: this line is longer than {MAX_PASSED_OVER_BYTES // 2**30} GiB",
                hint="JSONL has one JSON object on each line; is this the file that you meant?",
            )
