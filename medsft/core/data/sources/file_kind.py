"""What a file is that holds no rows which medsft reads, told by its content, and what to do with it.

Only what is sure is refused here. A file of which one line looks like an object is read as JSONL, and what is wrong with its
other lines is said line by line.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medsft.core.data.sources.streams import Packing, packing_of
from medsft.errors import DataError

ROW_FILES = "JSONL, a JSON array, CSV or Parquet"
"""What is read, in the words of messages."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file. `remedy` says what to do; in `command` `{file}` is the file and `{out}` the JSONL to be."""

    what: str
    remedy: str
    command: str = ""


_MAGIC: Sequence[tuple[bytes, Kind]] = (
    (b"FEA1", Kind("a Feather table of the first version", "write it again as Parquet")),
    (b"PK\x03\x04", Kind("a zip archive or an Excel workbook", "save the sheet as CSV, or unpack the archive", "unzip {file}")),
    (b"\xd0\xcf\x11\xe0", Kind("an old Excel or Word file", "save the sheet as CSV")),
    (b"SQLite format 3\0", Kind("an SQLite database", "export its rows as CSV or JSONL")),
    (b"%PDF", Kind("a PDF", f"give rows as {ROW_FILES}")),
)
SPREAD_OBJECTS = Kind("JSON spread over several lines", "write each object on one line", "jq -c . {file} > {out}")
_UNPACK = {"gzip": "gunzip -c <", "zstd": "zstd -dc <", "bzip2": "bunzip2 -c <", "xz": "xz -dc <"}


def refused(path: Path, kind: Kind, packing: Packing | None) -> DataError:
    """Return the error for a file of a kind that is not read, saying what it is and what to do, with no text of the file.

    `packing`: of the file, whose unpacked content is of that kind.
    """
    source = path
    if packing:  # never the file itself, whatever it is called
        source = path.with_name(f"{path.name.split('.')[0]}-unpacked")
    command = kind.command.replace("{file}", shlex.quote(str(source)))
    command = command.replace("{out}", shlex.quote(str(path.with_name(f"{path.name.split('.')[0]}-rows.jsonl"))))
    lines = [f"{kind.remedy}:" if command else kind.remedy, command]
    if packing and command:
        lines.insert(1, f"{_UNPACK[packing.name]} {shlex.quote(str(path))} > {shlex.quote(str(source))}")
    return DataError(f"{path} is {kind.what}, not {ROW_FILES}", hint="\n    ".join(filter(None, lines)))


def by_magic(head: bytes) -> Kind | None:
    """The kind that a sign at a fixed place shows, None where there is no such sign."""
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[257:262] == b"ustar":
        return Kind("a tar archive", "unpack it", "tar -xf {file}")
    if again := packing_of(head):
        return Kind(f"packed twice, at last with {again.name}", "unpack it", f"{_UNPACK[again.name]} {{file}} > {{out}}")
    return None


def is_broken_over_lines(text: bytes) -> bool:
    """Whether a text that begins with a bracket goes on in the next line. One line that is cut short is a bad row instead."""
    first, _, rest = text.partition(b"\n")
    return first.rstrip().endswith((b"{", b"[", b",")) and bool(rest)


def text_kind(text: bytes) -> Kind:
    """The kind of a text that has no rows."""
    if text.startswith(b"<"):
        return Kind("HTML or XML", "give rows; a page that was saved in place of a file has to be fetched again")
    if b"\0" in text[:1024]:
        return Kind("binary data", f"give rows as {ROW_FILES}")
    named = "a table of one column needs a usual name of it in its first row, such as `text`"
    return Kind("plain text", f"give rows with a question and an answer in each, or with a `text` ({named})")
