"""Writes the rows of checked files without those that a check leaves out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medsft.core.data.check.report import CheckReport, Rows
from medsft.core.data.sources.base import RowSource, all_rows
from medsft.core.disk import writing
from medsft.core.files import new_folder
from medsft.errors import ConfigError, DataError, Problem

LEFT_OUT_NAME = "left_out.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanFiles:
    """What was written."""

    folder: Path
    files: Mapping[str, int]
    """Name of each file in the folder -> its rows"""
    left_out: int
    """Rows that are in none of them; `LEFT_OUT_NAME` has the place of each, and why"""
    reasons: Mapping[str, int]
    """Name of each kind -> rows left out that are of it; a row may be of several"""

    def to_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {
            "folder": str(self.folder),
            "files": dict(self.files),
            "left_out": self.left_out,
            "left_out_reasons": dict(self.reasons),
        }


def refuse_folder(folder: Path) -> None:
    """Raise ConfigError for a folder that holds something: nothing is ever overwritten."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError([Problem("--write_clean", f"{folder} exists already", "Choose a folder that is new or empty.")])


def write_clean(report: CheckReport, folder: Path, *, with_identifiers: bool = True) -> CleanFiles:
    """Write one JSONL file for each file that was checked, named after it, and `LEFT_OUT_NAME`; all of them or none.

    Left out are rows of the kinds `kinds.LEFT_OUT`; rows with identifiers only when `with_identifiers` is False. Raises
    ConfigError when the folder holds something or cannot be written, DataError when a file is no longer as it was checked.
    """
    refuse_folder(folder)
    left_out = report.left_out(with_identifiers=with_identifiers)
    sources = report.places.sources
    names = _names([source.path for source in sources])
    rows_of: dict[str, int] = {}
    with writing(folder, "--write_clean"), new_folder(folder) as aside:
        first = 0
        for file, (source, name) in enumerate(zip(sources, names, strict=True)):
            end = first + sum(
                len(numbers) for numbers, of in zip(report.places.numbers, report.places.files, strict=True) if of == file
            )
            with (aside / name).open("wb") as out:
                for line in _kept_lines(source, report, first, end, left_out):
                    out.write(line)
            rows_of[name] = end - first - int(np.count_nonzero((left_out >= first) & (left_out < end)))
            first = end
        with (aside / LEFT_OUT_NAME).open("w") as listed:
            for row in left_out.tolist():
                listed.write(json.dumps({"row": report.places.of(row), "why": report.kinds_of(row)}) + "\n")
    reasons = {kind.name: len(np.intersect1d(found.rows, left_out)) for kind, found in report.found.items()}
    return CleanFiles(
        folder=folder,
        files=rows_of,
        left_out=len(left_out),
        reasons={name: rows for name, rows in reasons.items() if rows},
    )


def _kept_lines(source: RowSource, report: CheckReport, first: int, end: int, left_out: Rows) -> Iterator[bytes]:
    """Yield the rows of a file that stay, as lines of JSON. Raises DataError when they are not those that were checked."""
    left = set(left_out[(left_out >= first) & (left_out < end)].tolist())
    number = first
    for row in all_rows(source):
        if number >= end or source.place(row.number) != report.places.of(number):
            break
        if number not in left:
            yield _line(_plain(row.fields()))
        number += 1
    else:
        if number == end:
            return
    raise DataError(f"{source.path} changed while it was read", hint="try again when it is finished")


def _line(fields: Any) -> bytes:
    """Return a row as a line of JSON. Half of a surrogate pair, under a key that is not read, stays the escape that it was."""
    try:
        return json.dumps(fields, ensure_ascii=False, default=str).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(fields, default=str).encode() + b"\n"


def _plain(value: Any) -> Any:
    """Return objects that were read as pairs (see `columns.members`) as dicts."""
    if isinstance(value, tuple):
        return {key: _plain(inner) for key, inner in value}
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _names(paths: Sequence[Path]) -> list[str]:
    """Return a name for each file, its own with the ending .jsonl; files of one name get numbers."""
    names: list[str] = []
    for path in paths:
        stem = path.name.split(".")[0] or "rows"
        name, number = f"{stem}.jsonl", 1
        while name in (*names, LEFT_OUT_NAME):
            number += 1
            name = f"{stem}-{number}.jsonl"
        names.append(name)
    return names
