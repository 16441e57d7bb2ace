"""Whether a text is CSV, how its cells are written and what its columns are called, told by its beginning."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from medsft.core.data.sources import usual_names
from medsft.core.data.sources.base import BadRow
from medsft.core.data.sources.columns import proposal, shown
from medsft.core.data.sources.csv_rows import CsvSource, Dialect, Record
from medsft.errors import DataError

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_NAMED = re.compile(r"\.(csv|tsv)(\.\w+)?", re.IGNORECASE)
"""The ending of a file that is called a table, packed or not"""
_ALONE = frozenset((*usual_names.TEXT, *usual_names.QUESTION, *usual_names.ANSWER, *usual_names.MESSAGES))
"""Names of the only column of a table; another first line may be the first record's"""
_DATE = re.compile(r"\d{4}([-/.])\d\d?\1\d|\d\d?([-/.])\d\d?\2\d\d")
_COMPARED_RECORDS = 50
_LONGEST_NAME = 40
_MOST_WORDS = 5


def csv_source(path: Path, head: bytes, text: bytes, *, whole: bool) -> CsvSource | None:
    """The rows of a CSV file whose `head` ends with this `text`, None for other text. `whole`: that is all of the file.

    Raises DataError for CSV whose first row does not name the columns, each by a name of its own.
    """
    begins = len(head) - len(text)
    declared = ""
    if text[:4].lower() == b"sep=" and text[5:6] in b"\r\n":  # a line for Excel
        declared, before = text[4:5].decode("latin-1"), text.find(b"\n") + 1
        begins, text = begins + before, text[before:]
    decoded = text.decode("utf-8", "surrogateescape")
    found = [(dialect, records) for dialect in _dialects(decoded, declared) if (records := _records(dialect, decoded, whole))]
    several = [(dialect, records) for dialect, records in found if len(_cells(records[0])) > 1]
    best = (
        max(several, key=lambda one: (_alike(one[1]), len(_cells(one[1][0])))) if several else _one_column(path, decoded, whole)
    )
    if best is None:
        return None
    dialect, records = best
    names = [name.strip() for name in _cells(records[0])]
    usual = proposal(names)
    known = bool(declared or usual.question or usual.answer or len(names) == 1)
    if not (known or 2 * _alike(records) >= len(records) - 1):
        return None
    _refuse_bad_names(path, names, dialect)
    line_ends = decoded.split("\n", records[0].line + records[0].lines)
    first = len(text) if len(line_ends) <= records[0].line + records[0].lines else len(text) - _bytes(line_ends[-1])
    columns = tuple(name or f"column {number}" for number, name in enumerate(names, 1))
    return CsvSource(path, dialect, columns, begins + first, 1 + head.count(b"\n", 0, begins + first))


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogateescape"))


def _dialects(text: str, declared: str) -> list[Dialect]:
    """The ways in which cells may be written; where each name in the first row stands behind a space, all cells do."""
    first = text.lstrip().partition("\n")[0]
    signs = [declared] if declared else DELIMITERS
    return [Dialect(sign, spaced=0 < first.count(sign) == first.count(f"{sign} ")) for sign in signs if sign in text]


def _records(dialect: Dialect, text: str, whole: bool) -> list[Record]:
    """The first records with cells, without one that may be cut off."""
    some = [record for record in islice(dialect.records(text), _COMPARED_RECORDS) if record.cells]
    if not whole and len(some) < _COMPARED_RECORDS:
        del some[-1:]
    return some if some and not isinstance(some[0].cells, BadRow) else []


def _one_column(path: Path, text: str, whole: bool) -> tuple[Dialect, list[Record]] | None:
    """The dialect and the first records of a file that is called CSV and has a usual name for one column in its first row.

    None for another file: nothing but these names tells such a table from text.
    """
    called = _NAMED.search("".join(path.suffixes[-2:]))
    if called is None:
        return None
    dialect = Dialect("\t" if called[1].lower() == "tsv" else ",")
    records = _records(dialect, text, whole)
    names = _cells(records[0]) if records else []
    return (dialect, records) if len(names) == 1 and names[0].strip().lower() in _ALONE else None


def _cells(record: Record) -> list[str]:
    return [] if isinstance(record.cells, BadRow) else record.cells


def _alike(records: Sequence[Record]) -> int:
    """How many records have as many cells as the first."""
    columns = len(_cells(records[0]))
    return sum(len(_cells(record)) == columns for record in records[1:])


def _refuse_bad_names(path: Path, names: Sequence[str], dialect: Dialect) -> None:
    """Raise DataError for a first row that does not name columns. Its text, which may be a record's, is not shown."""
    what = f"{path} is CSV with {DELIMITERS.get(dialect.delimiter, dialect.delimiter)}"
    if not all(map(_may_be_name, names)):
        raise DataError(
            f"{what}, and its first row does not name the columns",
            hint="write a first row with a short name for each column, such as prompt and gold, in UTF-8",
        )
    repeated = [name for name, times in Counter(names).items() if name and times > 1]
    if repeated:
        raise DataError(f"{what}, and several columns have the same name: {shown(repeated)}", hint="give each its own name")


def _may_be_name(name: str) -> bool:
    short = len(name) <= _LONGEST_NAME and len(name.split()) <= _MOST_WORDS and name.isprintable()
    return short and not name.endswith((".", "!")) and not name.replace(".", "").isdigit() and not _DATE.search(name)
