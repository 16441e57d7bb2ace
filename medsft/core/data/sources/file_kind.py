"""What a file is that is not JSONL, told by its content, and how to turn it into JSONL.

Only what is sure is refused here. A file of which one line looks like an object is read as JSONL, and what is wrong with its
other lines is said line by line.
"""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from medsft.core.models.checked_json import refuse_pointer
from medsft.errors import DataError

HEAD_BYTES = 2**16
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_COMPARED_LINES = 20
_FIRST_VALUE = re.compile(rb'\s*\{\s*"(?:[^"\\]|\\.)*"\s*:\s*(.)', re.DOTALL)
_ARRAY_BEGINS = re.compile(rb'\[\s*([\[\]{"0-9-]|$)')
"""Not `[name]`, as settings files have it."""
_PARQUET = (
    "python3 -c 'import sys, pandas; pandas.read_{reader}(sys.argv[1]).to_json(sys.argv[2], orient=\"records\", lines=True)'"
)
_ROWS_OF = "python3 -c 'import json, sys; [print(json.dumps(row)) for row in {rows}]'"
_LOADED = 'json.load(open(sys.argv[1], encoding="utf-8-sig"))'


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of file. In `command` `{file}` is the file and `{out}` the JSONL to be; `before` is what to do first."""

    what: str
    command: str
    before: str = "turn it into JSONL"


_MAGIC: Sequence[tuple[bytes, _Kind]] = (
    (
        b"PAR1",
        _Kind(
            "Parquet",
            _PARQUET.replace("{reader}", "parquet") + " {file} {out}",
            "turn it into JSONL (pip install pandas pyarrow)",
        ),
    ),
    (
        b"ARROW1",
        _Kind(
            "an Arrow or Feather table",
            _PARQUET.replace("{reader}", "feather") + " {file} {out}",
            "turn it into JSONL (pip install pandas pyarrow)",
        ),
    ),
    (b"\x28\xb5\x2f\xfd", _Kind("packed with zstd", "zstd -d {file} -o {out}", "unpack it")),
    (b"BZh", _Kind("packed with bzip2", "bunzip2 -c {file} > {out}", "unpack it")),
    (b"\xfd7zXZ\0", _Kind("packed with xz", "xz -dc {file} > {out}", "unpack it")),
    (b"\x1f\x8b", _Kind("packed with gzip twice", "gunzip -c < {file} > {out}", "unpack it")),
    (
        b"PK\x03\x04",
        _Kind("a zip archive or an Excel workbook", "unzip {file}", "save the sheet as CSV, or unpack the archive"),
    ),
    (b"\xd0\xcf\x11\xe0", _Kind("an old Excel or Word file", "", "save the sheet as CSV")),
    (b"SQLite format 3\0", _Kind("an SQLite database", "", "export its rows as JSONL")),
    (b"%PDF", _Kind("a PDF", "", "give JSONL with questions and answers")),
)
_ARRAY = _Kind("a JSON array", f"{_ROWS_OF.format(rows=_LOADED)} {{file}} > {{out}}")
_KEYED = _Kind("one JSON object whose values are the rows", f"{_ROWS_OF.format(rows=f'{_LOADED}.values()')} {{file}} > {{out}}")
_LISTED = _Kind(
    "one JSON object with an array in it", f"{_ROWS_OF.format(rows=f'next(iter({_LOADED}.values()))')} {{file}} > {{out}}"
)
_SPREAD = _Kind("JSON spread over several lines", "jq -c . {file} > {out}", "write each object on one line")
_LABEL_STUDIO = _Kind(
    "an export of Label Studio (a JSON array of tasks)",
    _ARRAY.command,
    "the question is then `--question_key data.NAME`; answers have to be moved out of `annotations` to a key of their own. "
    "Turn it into JSONL",
)
_UTF_16 = _Kind("UTF-16 text", "iconv -f {encoding} -t UTF-8 {file} > {out}", "save it as UTF-8")


def refuse_other_kinds(path: Path, head: bytes, *, packed: bool) -> None:
    """Raise DataError when the first bytes of a file show that it is not JSONL, saying what it is and what to do.

    `packed`: they were unpacked from gzip. The message holds no text of the file.
    """
    refuse_pointer(path, head, DataError)
    whole, head = len(head) <= HEAD_BYTES, head[:HEAD_BYTES]
    kind = _kind(head, whole)
    if kind is None:
        return
    source = path
    if packed:  # never the file itself, whatever it is called
        source = path.with_suffix("") if path.suffix == ".gz" else path.with_name(f"{path.name}-unpacked")
    command = kind.command.replace("{file}", shlex.quote(str(source)))
    command = command.replace("{out}", shlex.quote(str(path.with_name(f"{path.name.split('.')[0]}-rows.jsonl"))))
    lines = [f"{kind.before}:" if command else kind.before, command]
    if packed and command:
        lines.insert(1, f"gunzip -c < {shlex.quote(str(path))} > {shlex.quote(str(source))}")
    raise DataError(f"{path} is {kind.what}, not JSONL (one JSON object on each line)", hint="\n    ".join(filter(None, lines)))


def _kind(head: bytes, whole: bool) -> _Kind | None:
    """What a file is, None for JSONL and for what cannot be told."""
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[257:262] == b"ustar":
        return _Kind("a tar archive", "tar -xf {file}", "unpack it")
    if encoding := _wide_encoding(head):
        return _Kind(_UTF_16.what.replace("16", encoding[4:6]), _UTF_16.command.replace("{encoding}", encoding), _UTF_16.before)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        return None
    first, _, rest = text.partition(b"\n")
    if _ARRAY_BEGINS.match(text):
        return _array(text, first, rest)
    if any(line.startswith(b"{") and _parsed(line) is not None for line in text.splitlines()):
        return _KEYED if whole and not rest.strip() and _is_keyed(_parsed(first)) else None
    if text[:1] == b"{":
        return _object_of_lines(text, first)
    if any(line.lstrip().startswith(b"{") for line in text.split(b"\n")):
        return None
    return _text_kind(text) if whole or rest else None


def _wide_encoding(head: bytes) -> str:
    """The name of a Unicode encoding with two or four bytes a character, empty for another."""
    if head.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "UTF-32"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    sample = head[:256]
    half = len(sample) // 2
    if half > 8:  # without a mark: every second byte of mostly ASCII text is NUL
        if sample[1::2].count(0) > 0.7 * half and sample[::2].count(0) < 0.1 * half:
            return "UTF-16LE"
        if sample[::2].count(0) > 0.7 * half and sample[1::2].count(0) < 0.1 * half:
            return "UTF-16BE"
    return ""


def _array(text: bytes, first: bytes, rest: bytes) -> _Kind | None:
    if rest.strip() and _parsed(first) is not None:
        return None  # rows that are arrays: said of each row
    tasks = b'"annotations"' in text and b'"data"' in text
    return _LABEL_STUDIO if tasks else _ARRAY


def _object_of_lines(text: bytes, first: bytes) -> _Kind | None:
    """An object that is broken over lines. One line that is cut short is a bad row instead."""
    if b"\n" not in text or not first.rstrip().endswith((b"{", b"[", b",")):
        return None
    value = _FIRST_VALUE.match(text)
    return {b"{": _KEYED, b"[": _LISTED}.get(value[1] if value else b"", _SPREAD)


def _is_keyed(value: object) -> bool:
    """Whether an object holds nothing but rows, which are alike."""
    if not isinstance(value, dict) or len(value) < 2 or not all(isinstance(row, dict) and row for row in value.values()):
        return False
    return len({frozenset(row) for row in value.values()}) == 1


def _text_kind(text: bytes) -> _Kind | None:
    if text.startswith(b"<"):
        return _Kind("HTML or XML", "", "give JSONL; a page that was saved in place of a file has to be fetched again")
    if b"\0" in text[:1024]:
        return _Kind("binary data", "", "give JSONL")
    try:
        decoded, encoding = text.decode("utf-8", "strict"), "utf-8-sig"
    except UnicodeDecodeError as error:
        cut = error.start >= len(text) - 4  # a character at the end of the head
        encoding = "utf-8-sig" if cut else "cp1252"
        decoded = text.decode("utf-8" if cut else "latin-1", "ignore")
    lines = [line for line in decoded.splitlines() if line.strip()][:_COMPARED_LINES]
    delimiter = _delimiter(lines)
    if delimiter is None:
        return _Kind("plain text", "", "give JSONL with a question and an answer in each object")
    reader = f'csv.DictReader(open(sys.argv[1], newline="", encoding="{encoding}"), delimiter={json.dumps(delimiter)})'
    command = _ROWS_OF.replace("import json", "import csv, json").format(rows=reader) + " {file} > {out}"
    return _Kind(f"CSV with {_DELIMITERS[delimiter]}", command)


def _delimiter(lines: Sequence[str]) -> str | None:
    """What separates the columns: a sign that is in the first line and in most of the others (a quoted text has lines)."""
    counts = Counter({sign: lines[0].count(sign) for sign in _DELIMITERS})
    for sign, number in counts.most_common():
        others = sum(sign in line for line in lines[1:])
        if number and (len(lines) == 1 or 2 * others >= len(lines) - 1):
            return sign
    return None


def _parsed(line: bytes) -> object:
    try:
        return orjson.loads(line)
    except ValueError:
        return None
