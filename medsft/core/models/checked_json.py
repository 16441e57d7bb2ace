"""Small JSON files and plain values that anybody may have written: read within limits, refused in words for people."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsft.errors import MedsftError, MismatchError

LARGEST_JSON = 64 * 2**20
"""Bytes; the index of a model of 10^12 parameters has some 10 MB."""
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_MISSING = object()
_SHOWN = 100


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises `FileNotFoundError` when there is no such file, and `MismatchError` for one that cannot be read, is larger than
    `LARGEST_JSON`, is no JSON, or is something else than an object.
    """
    try:
        state = path.stat()
        if not_a_file(state):
            raise MismatchError(f"{path}: {not_a_file(state)}.")
        if state.st_size > LARGEST_JSON:
            raise MismatchError(f"{path}: {state.st_size:,} bytes; a file of this name has at most {LARGEST_JSON:,}.")
        content = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise MismatchError(f"{path}: cannot be read: {error.strerror or error}.") from None
    refuse_pointer(path, content)
    return parse_object(content, where=str(path))


def not_a_file(state: os.stat_result) -> str:
    """Say what stands where a file should, "" when it is one. Opening a named pipe would wait for whoever writes into it."""
    if stat.S_ISREG(state.st_mode):
        return ""
    return "a folder, not a file" if stat.S_ISDIR(state.st_mode) else "a pipe or a device, not a file"


def parse_object(content: bytes, *, where: str) -> dict[str, Any]:
    """Return the JSON object in `content`. Raises `MismatchError`, naming `where`, when it is none."""
    try:
        value = json.loads(content.decode("utf-8"))
    except RecursionError:
        raise MismatchError(f"{where}: not valid JSON: it is nested too deeply.") from None
    except ValueError as error:
        raise MismatchError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise MismatchError(f"{where}: must hold a JSON object, not {shown(value)}.")
    return value


def refuse_pointer(path: Path, start: bytes, error: type[MedsftError] = MismatchError) -> None:
    """Raise `error` when a file that starts so is what git leaves in place of a large file that it did not fetch.

    `error` is that of other unusable files of the kind: `MismatchError` for a model's, `DataError` for rows and tokenizers.
    """
    if start.startswith(_LFS_POINTER):
        raise error(
            f"{path}: a pointer of Git LFS, not the file itself.",
            hint="Run `git lfs pull` in that folder, or download the file again.",
        )


def shown(value: Any) -> str:
    """Return a value as a message may show it: short, in ASCII, never a structure's content."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, (list, tuple, set, frozenset)):
        return "a list"
    if value is None:
        return "null"
    try:
        text = json.dumps(value) if isinstance(value, (str, bool, int, float)) else type(value).__name__
    except ValueError:  # a number of more digits than Python writes
        return "a huge number"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def plain(text: str) -> str:
    """Return a text as a message may show it without quotes around it: short, in ASCII, on one line."""
    return shown(text)[1:-1]


@dataclass(frozen=True, slots=True)
class Values:
    """Plain values by name, out of a file; every method raises `MismatchError` naming the file and the value that is wrong.

    A value of None counts as not there.
    """

    raw: Mapping[str, Any]
    where: str

    def whole(self, name: str, *, default: Any = _MISSING, low: int = 1, high: int) -> Any:
        """Return a whole number within the limits, or the default."""
        value = self._get(name, default)
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._wrong(name, value, f"a whole number from {low:,} to {high:,}")
        return value

    def number(self, name: str, *, default: Any = _MISSING, low: float = 0.0, high: float = 1e12) -> Any:
        """Return a finite number above `low` and up to `high`, or the default."""
        value = self._get(name, default)
        if value is default:
            return value
        # An integer too large for a float is beyond every limit: compared as it is, it cannot overflow.
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not low < value <= high
            or not math.isfinite(value)
        ):
            raise self._wrong(name, value, f"a number above {low:g} and up to {high:g}")
        return float(value)

    def flag(self, name: str, *, default: bool = False) -> bool:
        """Return true or false."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def text(self, name: str, *, default: Any = _MISSING) -> Any:
        """Return a string, or the default."""
        value = self._get(name, default)
        if value is not default and not isinstance(value, str):
            raise self._wrong(name, value, "text")
        return value

    def inner(self, name: str) -> Values:
        """Return the object under a name, an empty one where there is none."""
        value = self._get(name, {})
        if not isinstance(value, Mapping):
            raise self._wrong(name, value, "an object")
        return Values(value, f"{self.where}: {name}")

    def items(self, name: str) -> list[Any]:
        """Return the list under a name, an empty one where there is none."""
        value = self._get(name, [])
        if not isinstance(value, (list, tuple)):
            raise self._wrong(name, value, "a list")
        return list(value)

    def _get(self, name: str, default: Any) -> Any:
        value = self.raw.get(name)
        if value is not None:
            return value
        if default is _MISSING:
            raise MismatchError(f"{self.where}: `{name}` is {'null' if name in self.raw else 'missing'}.", hint=_HINT)
        return default

    def _wrong(self, name: str, value: Any, expected: str) -> MismatchError:
        return MismatchError(f"{self.where}: `{name}` is {shown(value)}; it must be {expected}.", hint=_HINT)


_HINT = "Take the file that came with the model."
