"""Which row format each file has: told by its first rows, with the reason in one sentence.

    first rows of a file --_look--> what they are like --_agreed--> its format
    the files of a set of a format --_keys_of_files--> their keys, together where that fits all of them --> RowFormat of each

A format and keys that a person gives are taken; only the others are looked for. A key that is given counts for the files of the
formats that use it, and some file must be of one of them. Rows with `prompt` and `gold`, the original's keys, are read as ever.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from medsft.core.config.options import flag
from medsft.core.config.row_options import FORMATS, USED_BY, FormatName
from medsft.core.data.sources.base import BadRow, all_rows
from medsft.core.data.sources.columns import Keys, nodes
from medsft.core.data.sources.multiple_choice import possible_first_options
from medsft.core.data.sources.open import open_rows
from medsft.core.data.sources.row_format import RowFormat, RowFormats, one_or_each
from medsft.core.data.sources.row_keys import Seen, find_keys, named, together
from medsft.core.data.sources.row_looks import RowOptions, format_of_row
from medsft.errors import DataError

_LOOKED_AT = 50
"""Rows of each file whose format is told."""
_COUNTED = 1000
"""Rows of each file that are looked at for the number of the first option: of four options, one tells it."""
_SHOWN_FILES = 3
_SETTLED_NS = 2 * 10**9
"""A file changed less than this ago may be changed again without another time or size: the clocks of disks are coarse."""
NOTHING_SAID = RowOptions()
_Look = Mapping[FormatName | None, Seen]
"""The first rows of a file by their format; None: those that are of none that is possible"""
_Looked = Sequence[tuple[Path, _Look]]


class Recognized(NamedTuple):
    """How the rows of a file are read, and why."""

    rows: RowFormat
    reason: str
    """A clause for people; empty where a person chose the format and every key, or there are no rows to look at"""


@dataclass(frozen=True, slots=True)
class RecognizedFiles:
    """How the rows of some files are read, and why."""

    files: tuple[Path, ...]
    each: tuple[Recognized, ...]
    """Of each file, in their order"""

    @property
    def rows(self) -> RowFormats:
        """How the files are read, in their order."""
        return one_or_each([found.rows for found in self.each])

    def rows_of(self, files: Sequence[Path]) -> RowFormats:
        """Return how some of the files are read, in the order of these."""
        by_path: dict[Path, Recognized] = {}
        for path, found in zip(self.files, self.each, strict=True):  # of one that is validated on, too: as it is trained on
            by_path.setdefault(path, found)
        return one_or_each([by_path[path].rows for path in files])

    @property
    def reason(self) -> str:
        """Why, as a clause for people; where files are read in several ways, of which files each clause is."""
        groups = self._groups()
        if len(groups) == 1:
            return self.each[0].reason
        return "; ".join(f"{_listed(files)}: {found.reason}" for found, files in groups.items() if found.reason)

    @property
    def sentences(self) -> tuple[str, ...]:
        """What a person should know of it: a sentence for each way in which files are read."""
        groups = self._groups()
        several = len(groups) > 1
        return tuple(
            found.rows.sentence(f" of {_listed(files)}" if several else "") + (f" ({found.reason})." if found.reason else ".")
            for found, files in groups.items()
        )

    def _groups(self) -> dict[Recognized, list[Path]]:
        """Return the files that are read in the same way, under the reason of the first of them."""
        groups: dict[RowFormat, list[Path]] = {}
        first: dict[RowFormat, Recognized] = {}
        for path, found in zip(self.files, self.each, strict=True):
            groups.setdefault(found.rows, []).append(path)
            first.setdefault(found.rows, found)
        return {first[rows]: files for rows, files in groups.items()}


def _listed(files: Sequence[Path]) -> str:
    """Return paths in a sentence: of many, the first few."""
    shown = [str(path) for path in dict.fromkeys(files)]
    if len(shown) > _SHOWN_FILES:
        shown = [*shown[:_SHOWN_FILES], f"{len(shown) - _SHOWN_FILES} more"]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def recognize(files: Sequence[Path], wanted: RowOptions = NOTHING_SAID, *, val: Sequence[Path] = ()) -> RecognizedFiles:
    """Return how the rows of each file, and then of each of `val`, are read, by the first rows of all.

    Those of `val` make another set: each is read by the keys that its own rows have, and where they do not tell, as the other.
    Asked again for the same files, it reads none. Raises DataError for a file that cannot be read, for rows of a file that are
    not all of one format, for a given key that no file's format uses, and for answers that are numbers of options where nothing
    tells from which number options count.
    """
    both = (*files, *val)
    stamps = tuple(map(_stamp, both))
    look = _look_at_all if None in stamps else partial(_remembered, stamps)
    return look(both, len(files), wanted)


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return size and time of a file, by which a change is seen; None for one of which they do not tell."""
    try:
        status = path.stat()
    except OSError:  # whoever opens it says what is wrong
        return None
    return (status.st_size, status.st_mtime_ns) if time.time_ns() - status.st_mtime_ns > _SETTLED_NS else None


@lru_cache(maxsize=4)
def _remembered(stamps: tuple[object, ...], files: tuple[Path, ...], trained: int, wanted: RowOptions) -> RecognizedFiles:
    """Look at files that are as `stamps` say, once: the start of a run asks several times, the wizard after each change."""
    return _look_at_all(files, trained, wanted)


def _look_at_all(files: tuple[Path, ...], trained: int, wanted: RowOptions) -> RecognizedFiles:
    """Look at the first rows of each file; so many files, the first, are trained on."""
    looks = [_look(path, wanted) for path in files]
    names = _names(looks, wanted)
    _refuse_unused(files, names, wanted)
    each: dict[int, Recognized] = {}
    for name in dict.fromkeys(names):
        numbers = [number for number, other in enumerate(names) if other == name]
        train = {number: (files[number], looks[number]) for number in numbers if number < trained}
        val = {number: (files[number], looks[number]) for number in numbers if number >= trained}
        for of_set, beside in ((train, val), (val, train)):
            each |= zip(of_set, _of_format(name, list(of_set.values()), list(beside.values()), wanted), strict=True)
    return RecognizedFiles(files, tuple(each[number] for number in range(len(files))))


# --- the format of a file ------------------------------------------------------------------------------------------


def _look(path: Path, wanted: RowOptions) -> _Look:
    """Return what the first rows of a file are like. Raises DataError for one that cannot be read."""
    rows = [(place, dict(nodes(row))) for place, row in _first_rows(path, _LOOKED_AT)]
    possible = _possible([found for _, found in rows], wanted)
    seen: dict[FormatName | None, Seen] = {}
    for place, found in rows:
        seen.setdefault(format_of_row(found, wanted, possible), Seen()).add(place, found, wanted)
    return seen


def _first_rows(path: Path, most: int) -> Iterator[tuple[str, Mapping[str, object]]]:
    source = open_rows(path)
    for row in islice(all_rows(source), most):
        if not isinstance(row.content, BadRow):
            yield source.place(row.number), row.content


def _possible(rows: Sequence[Mapping[str, object]], wanted: RowOptions) -> Sequence[FormatName]:
    """Return the formats that a file may have: those that the options name, unless these are for other files."""
    if wanted.format != "auto":
        return wanted.named
    for found in rows:
        name = format_of_row(found, wanted, wanted.named)
        if name is not None and wanted.there(name, found):
            return wanted.named
    others = [name for name in FORMATS if name not in wanted.named and any(wanted.there(name, found) for found in rows)]
    return others if any(format_of_row(found, wanted, others) for found in rows) else wanted.named


def _names(looks: Sequence[_Look], wanted: RowOptions) -> list[FormatName]:
    """Return the format of each file; one whose rows are of none gets that of others, or the one to name what is missing by."""
    told = [_agreed(look) for look in looks]
    possible = wanted.named or FORMATS
    usual = next((name for name in told if name is not None and name in possible), possible[0])
    return [name or usual for name in told]


def _agreed(look: _Look) -> FormatName | None:
    """Return the one format of a file's rows, None where none has one. Raises DataError when there are several."""
    found = [name for name in look if name is not None]
    if len(found) > 1:
        lines = [f"{name}: {', '.join(look[name].places)}" for name in found]
        raise DataError(
            "the rows are not all of one format:\n" + "\n".join(lines),
            hint="put the rows of each format into a file of their own, or choose one such as "
            f"--format {found[0]} and leave the others out with --bad_rows skip",
        )
    return next(iter(found), None)


def _refuse_unused(files: Sequence[Path], names: Sequence[FormatName], wanted: RowOptions) -> None:
    """Raise DataError for an option that was given and that no file's format uses: it would count for nothing."""
    for option in wanted.given:
        if names and not set(names).intersection(USED_BY[option]):
            formats = ", ".join(USED_BY[option])
            lines = [f"{path}: {name}" for path, name in zip(files, names, strict=True)]
            raise DataError(
                f"{flag(option)}: no file has rows of a format that uses it ({formats}):\n" + "\n".join(lines),
                hint=f"leave {flag(option)} away, correct it, or choose the format with --format",
            )


# --- the keys of a file --------------------------------------------------------------------------------------------


def _of_format(name: FormatName, looked: _Looked, beside: _Looked, wanted: RowOptions) -> list[Recognized]:
    """Return how the files of a set are read that have a format; those of the other set are `beside` them.

    Raises DataError where the number of the first option is not clear.
    """
    found = _keys_of_files(name, [look for _, look in looked], [look for _, look in beside], wanted)
    if name == "mcq" and wanted.first_option is None:
        by_keys: dict[Keys, list[int]] = {}
        for number, (keys, _) in enumerate(found):
            by_keys.setdefault(keys, []).append(number)
        for keys, numbers in by_keys.items():
            counted = _first_options([looked[number][0] for number in numbers], [path for path, _ in beside], keys)
            for number, (first_option, why) in zip(numbers, counted, strict=True):
                found[number] = (replace(keys, first_option=first_option), found[number][1] + why)
    return [Recognized(RowFormat(name=name, keys=keys), reason) for keys, reason in found]


def _keys_of_files(
    name: FormatName, looks: Sequence[_Look], beside: Sequence[_Look], wanted: RowOptions
) -> list[tuple[Keys, str]]:
    """Return the keys of each file of a format in a set, with the reason.

    They are looked for in the rows of all these files together, and where these do not tell, in those of the other set, too. A
    file that alone would be read by other keys, which it has, keeps those.
    """
    told = [look for look in looks if name in look] or list(looks)
    nobody = Seen()

    def all_rows(some: Sequence[_Look], of: FormatName | None) -> Seen:
        return together(look.get(of, nobody) for look in some)

    seen = all_rows(told, name)
    of_all, reason = find_keys(name, wanted, seen, all_rows(told, None))
    if beside and not reason:
        both = [look for look in (*looks, *beside) if name in look]
        of_all, reason = find_keys(name, wanted, all_rows(both, name), all_rows(both, None))
        if wanted.system is None and of_all.system not in seen.keys:
            of_all = replace(of_all, system=None)
    found = []
    for look in looks:
        alone = find_keys(name, wanted, look.get(name, nobody), look.get(None, nobody))
        others = len(told) > 1 and _has_others(alone[0], of_all, look.get(name, nobody))
        found.append(alone if others else (of_all, reason))
    return found


def _has_others(alone: Keys, of_all: Keys, seen: Seen) -> bool:
    """Tell whether rows have texts under keys of their own that the keys of all files do not name."""
    others = [value for name, value in asdict(alone).items() if value != getattr(of_all, name)]
    names = [key for value in others for key in (value if isinstance(value, tuple) else (value,))]
    return any(isinstance(key, str) and key in seen.keys for key in names)


def _first_options(files: Sequence[Path], beside: Sequence[Path], keys: Keys) -> list[tuple[int | None, str]]:
    """Return for each file of a set the number of the first option, None where no answer is a number, and how that is told.

    A file that does not tell it has the number of the others, of the set or else of the other one, `beside`. Raises DataError
    where it is not clear.
    """
    counted = [_count_options(path, keys) for path in files]
    if not any(of_file is not None for of_file in counted):
        return [(None, "")] * len(files)
    telling = _telling(counted) or _telling([_count_options(path, keys) for path in beside])
    answer = named(keys.answer)
    for_all = len(telling) == 1
    found: list[tuple[int | None, str]] = []
    for path, of_file in zip(files, counted, strict=True):
        told = telling if for_all else of_file
        if told is None:
            found.append((None, ""))
            continue
        if len(told) != 1:
            raise _unclear(path, answer, told)
        ((number, place),) = told.items()
        found.append((number, f"; the numbers under {answer} count from {number}, as {place} shows"))
    return found


def _telling(counted: Sequence[dict[int, str] | None]) -> dict[int, str]:
    """Return the numbers that the first option has in some files, each with the first row that shows it."""
    return {number: place for of_file in reversed(counted) if of_file for number, place in of_file.items()}


def _count_options(path: Path, keys: Keys) -> dict[int, str] | None:
    """Return the numbers that the first option of a file can only have, each with a row that shows it.

    None where no answer of the file is a number.
    """
    telling: dict[int, str] = {}
    numbers = False
    for place, row in _first_rows(path, _COUNTED):
        try:
            possible = possible_first_options(row, keys)
        except BadRow:
            continue
        numbers = numbers or possible is not None
        if possible is not None and len(possible) == 1:
            telling.setdefault(next(iter(possible)), place)
    return telling if numbers else None


def _unclear(path: Path, answer: str, telling: Mapping[int, str]) -> DataError:
    if telling:
        found = f"the numbers under {answer} count options from 0 in {telling[0]} and from 1 in {telling[1]}"
    else:
        found = f"{path}: the numbers under {answer} may count options from 0 or from 1: no row tells which"
    return DataError(found, hint="give --first_option 0 or 1 (MedMCQA: 1 in its original files, 0 in those of the hub)")
