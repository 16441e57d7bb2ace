"""Question/answer rows out of JSONL files: in order, in constant memory, with the place of every row that is wrong.

    files -> blocks -> lines (file:line) -> parse_row -> Example | BadRow

A message about a row names its place and what is wrong with it, never its text: a row may be about a patient.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast

import orjson

from medsft.errors import DataError

MAX_LINE_BYTES = 32 * 2**20
"""A longer line is a bad row. It bounds the memory of a chunk; the longest honest document is far shorter."""
SHOWN_BAD_ROWS = 20
_BLOCK_BYTES = 2**20
_GZIP_MAGIC = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"

_QUESTION_NAMES = ("prompt", "question", "input", "instruction", "query")
_ANSWER_NAMES = ("gold", "answer", "output", "response", "completion", "target")
_SYSTEM_NAMES = ("system", "system_prompt")
_PROPOSAL_ROWS = 50
_KEY_ENDS = re.compile(rb'"\s*:')


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """The names under which a row holds its texts."""

    question: str = "prompt"
    answer: str = "gold"
    system: str | None = None
    """None: documents have no system message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One question, its answer, and the system message if there is one."""

    question: str
    answer: str
    system: str | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """One line of an input file. ``raw`` is None when it is longer than `MAX_LINE_BYTES`."""

    file: int
    """Index into the list of input files."""
    number: int
    """From 1."""
    raw: bytes | None


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive lines of an input file."""

    file: int
    number: int
    """Of the first line"""
    content: bytes
    overlong: bool
    """Behind them was a line longer than `MAX_LINE_BYTES`, which is not in `content`."""
    bytes_read: int
    """Of the file as it is on disk, so far"""

    def lines(self) -> Iterator[Line]:
        """Yield the lines, without their ends. Blank ones hold no row: left out."""
        lines = self.content.split(b"\n")
        for number, line in enumerate(lines, self.number):
            if line and not line.isspace():
                yield Line(self.file, number, line)
        if self.overlong:
            yield Line(self.file, self.number + len(lines) - 1, None)


class BadRow(ValueError):
    """A row that cannot be used; the message is the reason."""


@dataclass(slots=True)
class BadRows:
    """The first bad rows by place, and how many there are for each reason."""

    places: list[tuple[int, int, str]] = field(default_factory=list)
    """(index of the file, line number, reason) of at most `SHOWN_BAD_ROWS` rows."""
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """Number of bad rows met, also of those whose place was not kept."""
        return self.reasons.total()

    def add(self, line: Line, reason: str) -> None:
        """Note one bad row."""
        self.reasons[reason] += 1
        if len(self.places) < SHOWN_BAD_ROWS:
            self.places.append((line.file, line.number, reason))

    def merge(self, later: BadRows) -> None:
        """Append the rows of a later part of the input."""
        self.places += later.places[: SHOWN_BAD_ROWS - len(self.places)]
        self.reasons += later.reasons

    def error(self, files: Sequence[Path]) -> DataError:
        """The one message that names them."""
        shown = [f"{files[file]}:{number}: {reason}" for file, number, reason in self.places]
        if self.total > len(shown):
            shown.append(f"... and {self.total - len(shown)} more")
        rows = "1 row" if self.total == 1 else f"{self.total} rows"
        return DataError(
            f"{rows} cannot be used, so nothing was written:\n" + "\n".join(shown),
            hint="correct them, choose other keys with --question_key, --answer_key and --system_key, "
            "or leave such rows out with --bad_rows skip",
        )


def read_blocks(path: Path, file: int = 0) -> Iterator[Block]:
    """Yield a plain or gzipped file about a MiB at a time, in whole lines.

    Raises DataError when the file cannot be read or its gzip data is damaged.
    """
    with open_lines(path) as (stream, raw_stream):
        number = 1
        while content := stream.read(_BLOCK_BYTES):
            if number == 1:
                content = content.removeprefix(_BOM)
            begun = len(content) - content.rfind(b"\n") - 1
            rest = stream.readline(MAX_LINE_BYTES + 1 - begun) if begun else b""
            overlong = begun + len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n")
            content = content[:-begun] if overlong else content + rest
            while overlong and (rest := stream.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield Block(file, number, content, overlong, raw_stream.tell())
            number += content.count(b"\n") + overlong


def read_lines(path: Path, file: int = 0) -> Iterator[Line]:
    """Yield each line of a file that is not blank. Raises DataError as `read_blocks` does."""
    for block in read_blocks(path, file):
        yield from block.lines()


@contextmanager
def open_lines(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The stream of decompressed bytes, and the file below it, whose position tells how far reading has come."""
    try:
        with path.open("rb") as raw_stream:
            zipped = raw_stream.read(2) == _GZIP_MAGIC
            raw_stream.seek(0)
            yield cast(IO[bytes], gzip.GzipFile(fileobj=raw_stream) if zipped else raw_stream), raw_stream
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise DataError(f"{path}: the gzip data ends early or is damaged", hint="copy the file again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}", hint="check the path after --data") from None


def parse_row(raw: bytes | None, keys: Keys) -> Example:
    """Read one line. Raises BadRow with a reason that holds no text of the row."""
    if raw is None:
        raise BadRow(f"line longer than {MAX_LINE_BYTES // 2**20} MiB")
    row = _object(raw)
    question, answer = _text(row, keys.question), _text(row, keys.answer)
    system = None if keys.system is None else _text(row, keys.system)
    if not question.strip():
        raise BadRow(f"empty question under '{keys.question}'")
    if not answer.strip():
        raise BadRow(f"empty answer under '{keys.answer}'")
    return Example(question=question, answer=answer, system=system)


def _object(raw: bytes) -> dict[str, object]:
    try:
        row = orjson.loads(raw)
        # Text may add matches, never hide one: as many matches as keys means that no key was there twice.
        if isinstance(row, dict) and len(_KEY_ENDS.findall(raw)) == len(row):
            return row
    except ValueError:
        pass  # the slower parser takes more, and what it does not take gets a reason below
    return _object_with_care(raw)


def _object_with_care(raw: bytes) -> dict[str, object]:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise BadRow("broken UTF-8") from None
    try:
        # Objects come back as tuples of pairs and arrays as lists, so that a repeated key is still there to be seen.
        pairs = json.loads(text, object_pairs_hook=tuple)
    except (ValueError, RecursionError):
        raise BadRow("not JSON") from None
    if not isinstance(pairs, tuple):
        raise BadRow("not a JSON object")
    row = dict(pairs)
    if len(row) < len(pairs):
        raise BadRow("the same key twice in one object")
    return row


def _text(row: dict[str, object], key: str) -> str:
    if key not in row:
        raise BadRow(f"no key '{key}'")
    value = row[key]
    if not isinstance(value, str):
        raise BadRow(f"'{key}' is not a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair
        raise BadRow("broken UTF-8") from None
    return value


def read_examples(files: Iterable[Path], keys: Keys, *, skip_bad: bool = False) -> Iterator[Example]:
    """Stream the examples of several files in order. Raises DataError at the first bad row, or leaves bad rows out."""
    paths = list(files)
    for index, path in enumerate(paths):
        for line in read_lines(path, index):
            try:
                yield parse_row(line.raw, keys)
            except BadRow as bad:
                if not skip_bad:
                    found = BadRows()
                    found.add(line, str(bad))
                    raise found.error(paths) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyProposal:
    """What the first rows of a file look like."""

    question: str | None
    answer: str | None
    system: str | None
    keys: tuple[str, ...]
    """Every key with a string under it in all of the rows looked at, in the order of the first row."""


def propose_keys(path: Path) -> KeyProposal:
    """Look at the first rows of a file and propose its keys by their usual names; None where there is no such name.

    Raises DataError when the file cannot be read.
    """
    common: list[str] | None = None
    rows = 0
    for line in read_lines(path):
        try:
            row = _object(line.raw or b"")
        except BadRow:
            continue
        strings = [key for key, value in row.items() if isinstance(value, str)]
        common = strings if common is None else [key for key in common if key in strings]
        rows += 1
        if rows == _PROPOSAL_ROWS:
            break
    keys = tuple(common or ())

    def first(names: Sequence[str]) -> str | None:
        return next((key for name in names for key in keys if key.lower() == name), None)

    return KeyProposal(question=first(_QUESTION_NAMES), answer=first(_ANSWER_NAMES), system=first(_SYSTEM_NAMES), keys=keys)
