"""JSON in one piece: an array of rows, or an object whose values are the rows.

file --open_stream--> bytes --blocks--> whole elements, about a MiB at a time --rows--> (line and element, object | reason)

The file is never parsed as a whole: `ElementScanner` finds the commas between its elements, and each element is parsed alone.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from medsft.core.data.sources.base import BadRow, Block, Row
from medsft.core.data.sources.columns import shown
from medsft.core.data.sources.elements import ElementScanner, cut
from medsft.core.data.sources.json_object import parsed
from medsft.core.data.sources.jsonl import MAX_LINE_BYTES, MAX_PASSED_OVER_BYTES
from medsft.core.data.sources.streams import open_stream, refuse_flood
from medsft.errors import DataError

_BLOCK_BYTES = 2**20
_MOST_ON_A_LINE = 2**32
MEMBER = re.compile(rb'\s*("(?:[^"\\]|\\.)*+")\s*:\s*', re.DOTALL)
"""What stands before a value in a JSON object: its key."""
_TORN = "the file ends within this row, or before the bracket that closes the rows"
_SEVERAL = "more than one JSON value without a comma between them"
_EMPTY = "no row: a comma too many"
_MOST_BEHIND_ROWS = 2**20
_NO_COMMAS = np.zeros(0, np.intp)


@dataclass(frozen=True, slots=True)
class JsonArraySource:
    """See `RowSource`. A row is an element of the array, or a value of the object."""

    path: Path
    start: int
    """Bytes up to the first element, of the text as `open_stream` gives it"""
    line: int
    """That of the first element's beginning"""
    close: bytes = b"]"
    """The bracket that ends the rows: `}` for an object of rows by their ids"""
    member: str | None = None
    """Key of an object under which the array stands, None for one that is the whole file"""

    def estimate(self) -> npt.NDArray[np.int64]:
        """The bytes of each element, see `RowSource.estimate`."""
        sizes = [np.zeros(0, np.int64)]
        for block in self.blocks():
            if block.content:
                commas = ElementScanner(self.close).scan(block.content).commas
                sizes.append(np.diff(commas, prepend=-1, append=len(block.content)) - 1)
        return np.concatenate(sizes)

    def blocks(self) -> Iterator[Block]:
        """Yield whole elements with the commas between them, see `RowSource.blocks`.

        Raises DataError, too, for text behind the rows, and for a row that has no end.
        """
        scanner, unread = ElementScanner(self.close), _Unread(_Place(self.line, 0))
        with open_stream(self.path) as (stream, raw_stream):
            stream.read(self.start)
            any_comma = False
            while content := stream.read(_BLOCK_BYTES):
                refuse_flood(self.path, stream, raw_stream)
                commas, end = scanner.scan(content)
                any_comma = any_comma or len(commas) > 0
                if unread.too_long and (len(commas) or end is not None):
                    first = int(commas[0]) if len(commas) else len(content) if end is None else end
                    too_long = f"row longer than {MAX_LINE_BYTES // 2**20} MiB, or without its closing quote or bracket"
                    yield Block(unread.pass_over(content[:first]).number, b"", too_long, raw_stream.tell())
                    if first == end:
                        self._refuse_what_follows(stream, content[end + 1 :], unread.place)
                        return
                    content, commas, end = content[first + 1 :], commas[1:] - first - 1, end if end is None else end - first - 1
                stop = end if end is not None else int(commas[-1]) if len(commas) else None
                if stop is None:
                    unread.add(content, self.path)
                    continue
                begins = unread.place
                whole = unread.take(content[:stop], commas[commas < stop])
                if any_comma or whole.strip():
                    yield Block(begins.number, whole, "", raw_stream.tell())
                if end is not None:
                    self._refuse_what_follows(stream, content[end + 1 :], unread.place)
                    return
                unread.add(content[stop + 1 :], self.path)
            yield Block(unread.pass_over(b"").number, b"", _TORN, raw_stream.tell())

    def rows(self, block: Block) -> Iterator[Row]:
        """Parse elements, see `RowSource.rows`."""
        if block.missing:
            yield Row(block.number, BadRow(block.missing))
            return
        commas = ElementScanner(self.close).scan(block.content).commas
        for element, place in _Place.of(block.number).walk(block.content, commas)[0]:
            yield Row(place.number, self._row(element))

    def _row(self, element: bytes) -> Mapping[str, object] | BadRow:
        if not element:
            return BadRow(_EMPTY)
        if self.close == b"]":
            return parsed(element, several=_SEVERAL)
        key = MEMBER.match(element)
        if key is None:
            return BadRow("not JSON: no key before the row")
        row = parsed(element[key.end() :], several=_SEVERAL)
        if isinstance(row, BadRow):
            return row
        try:
            return {"id": orjson.loads(key[1]), **row}
        except ValueError:
            return BadRow("not JSON")

    def place(self, number: int) -> str:
        """``FILE:LINE``, with the row's number on this line from the second one on."""
        place = _Place.of(number)
        return f"{self.path}:{place.line}" + (f" (row {place.nth} of this line)" if place.nth > 1 else "")

    def _refuse_what_follows(self, stream: IO[bytes], rest: bytes, place: _Place) -> None:
        """Raise DataError when more follows the closing bracket than there should be."""
        where = f"{self.path}:{place.line}"
        while len(rest) < _MOST_BEHIND_ROWS and (content := stream.read(_BLOCK_BYTES)):
            rest = rest.strip() + content
        if self.member is None:
            if rest.strip():
                raise DataError(
                    f"{where}: text follows the bracket that ends the rows",
                    hint="if several files were joined, give each of them; else look for a bracket too many before this place",
                )
            return
        try:
            others = orjson.loads(b'{"":0' + rest)
        except ValueError:
            raise DataError(
                f"{where}: what follows the array of rows is not the rest of a JSON object, or is too long",
                hint="copy the file again, or write the array alone into a file",
            ) from None
        if named := [key for key, value in others.items() if is_rows(value)]:
            raise several_arrays(self.path, [self.member, *named])


def is_rows(value: object) -> bool:
    """Whether a value is an array that may be one of rows."""
    return isinstance(value, list) and any(isinstance(row, dict) for row in value)


def several_arrays(path: Path, keys: Sequence[str]) -> DataError:
    """Return the error for an object with more than one array of rows."""
    key = next((key for key in keys if re.fullmatch(r"\w+", key)), "NAME")
    out = path.with_name(f"{path.name.split('.')[0]}-{key}.jsonl")
    return DataError(
        f"{path} is one JSON object with several arrays in it, {shown(keys)}: which of them are the rows?",
        hint=f"write one of them to a file of its own: jq -c '.{key}[]' {shlex.quote(str(path))} > {shlex.quote(str(out))}",
    )


class _Place(NamedTuple):
    """A place between elements."""

    line: int
    nth: int
    """Elements that begin on this line before it; of an element, its number among those of its line"""

    @property
    def number(self) -> int:
        """Both in one number, which grows from row to row."""
        return self.line * _MOST_ON_A_LINE + self.nth

    def after(self, content: bytes) -> _Place:
        """The place behind a part of an element that goes through here."""
        lines = content.count(b"\n")
        return _Place(self.line + lines, 0) if lines else self

    @classmethod
    def of(cls, number: int) -> _Place:
        """The place that has this number."""
        return cls(*divmod(number, _MOST_ON_A_LINE))

    def walk(self, content: bytes, commas: npt.NDArray[np.intp]) -> tuple[list[tuple[bytes, _Place]], _Place]:
        """The elements of a text that begins here, each with its place, and the place of the text's end."""
        line, nth = self
        elements = []
        for text in cut(content, commas):
            element = text.lstrip()
            if before := text.count(b"\n", 0, len(text) - len(element)):
                line, nth = line + before, 0
            nth += 1
            elements.append((element, _Place(line, nth)))
            if inside := element.count(b"\n"):
                line, nth = line + inside, 0
        return elements, _Place(line, nth)


class _Unread:
    """Text behind the last comma between elements, which may be the beginning of a row that goes on in the next part."""

    def __init__(self, place: _Place) -> None:
        self.place = place
        """Where it begins"""
        self._parts: list[bytes] = []
        self._bytes = 0
        self._too_long: tuple[_Place, _Place] | None = None
        """Of a row whose text is not kept any more: where it begins, and how far it was read"""

    @property
    def too_long(self) -> bool:
        """Whether the row is too long to be held in memory."""
        return self._too_long is not None

    def add(self, content: bytes, path: Path) -> None:
        """Append a part. Raises DataError for a row that does not end."""
        self._bytes += len(content)
        if self._bytes > MAX_PASSED_OVER_BYTES:
            begins = self._too_long[0] if self._too_long else self.place
            raise DataError(
                f"{path}:{begins.line}: the row that begins here is longer than {MAX_PASSED_OVER_BYTES // 2**30} GiB",
                hint="a quote or a bracket is missing in it",
            )
        if self._too_long:
            self._too_long = self._too_long[0], self._too_long[1].after(content)
            return
        self._parts.append(content)
        if self._bytes > MAX_LINE_BYTES:
            ((_, begins),), end = self.place.walk(b"".join(self._parts), _NO_COMMAS)
            self._too_long = begins, end
            self._parts = []

    def take(self, content: bytes, commas: npt.NDArray[np.intp]) -> bytes:
        """The whole text up to the end of a part, whose commas are given. What comes next begins behind it."""
        before = self._bytes
        whole = b"".join((*self._parts, content))
        self._reset(self.place.walk(whole, commas + before)[1])
        return whole

    def pass_over(self, content: bytes) -> _Place:
        """Leave out one row, which ends with a part, and return where it begins."""
        if self._too_long:
            begins, end = self._too_long[0], self._too_long[1].after(content)
        else:
            ((_, begins),), end = self.place.walk(b"".join((*self._parts, content)), _NO_COMMAS)
        self._reset(end)
        return begins

    def _reset(self, place: _Place) -> None:
        self.place, self._parts, self._bytes, self._too_long = place, [], 0, None
