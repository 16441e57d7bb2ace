"""What people write after `--data` and `--val`: FILE, FILE:SHARE, or for `--val` one share of the documents of `--data`.

A share of a file is the part of its documents that an epoch takes, or above 1 how often an epoch takes them. A path that exists
as it stands is a file, whatever it ends with.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from medsft.errors import Problem

_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
_WITH_SHARE = re.compile(rf"(?P<path>.+):(?P<share>{_NUMBER})", re.DOTALL)
_LARGEST_SHARE = 1000
"""Passes in one epoch. More is a slip of the keyboard, and the order of an epoch is held in memory."""


class DataFile(NamedTuple):
    """A file of `--data`, and its share of an epoch."""

    path: Path
    share: float
    """Above 0; 1: each of its documents once in an epoch"""


def data_file(typed: Path) -> DataFile:
    """Return the file and the share that an item of `--data` names; without a share, 1."""
    found = _WITH_SHARE.fullmatch(str(typed))
    if found is None or _exists(typed):
        return DataFile(typed, 1.0)
    return DataFile(Path(found["path"]), float(found["share"]))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long, or a folder that may not be read: whoever opens the file says so
        return False


def shares_of(typed: Sequence[Path]) -> tuple[float, ...]:
    """Return the share of each file of `--data`; nothing where an epoch takes every document of all files once."""
    shares = tuple(data_file(item).share for item in typed)
    return shares if any(share != 1 for share in shares) else ()


def share_of_validation(typed: Sequence[Path]) -> float | None:
    """Return the number that `--val` has in place of files, None where it has files or nothing."""
    return _number(typed[0]) if len(typed) == 1 else None


def check_data_files(data: Sequence[Path], val: Sequence[Path]) -> list[Problem]:
    """Return what is wrong with the shares of `--data` and `--val`."""
    problems = []
    for typed, (path, share) in ((item, data_file(item)) for item in data):
        if not 0 < share <= _LARGEST_SHARE:
            limits = f"Write {path}:0.5 for half of its documents in each epoch, {path}:2 for all of them twice."
            wrong = f"a share must be above 0, and {_LARGEST_SHARE} at most"
            problems.append(Problem("--data", f"{typed}: {wrong}", limits))
    return problems + _check_validation(val)


def _check_validation(val: Sequence[Path]) -> list[Problem]:
    numbers = [item for item in val if _number(item) is not None]
    if numbers and len(val) > 1:
        return [Problem("--val", f"`{numbers[0]}` is a share of --data and stands alone", "Give files, or one share.")]
    if numbers and not 0 < float(str(numbers[0])) < 1:
        remedy = "Write 0.05 to validate on 5 % of the documents of --data."
        return [Problem("--val", f"{numbers[0]} is no share between 0 and 1", remedy)]
    return []


def _number(typed: Path) -> float | None:
    return float(str(typed)) if re.fullmatch(_NUMBER, str(typed)) else None
