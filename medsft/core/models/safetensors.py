"""The head of a safetensors file, without torch: which tensors it holds, of which kind and shape, and where they lie.

The format (https://huggingface.co/docs/safetensors): the length of a JSON text as uint64, the JSON, the tensors. The head says
where each tensor ends, so a file that was cut is recognized without reading it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from medsft.core.models.checked_json import parse_object, refuse_pointer
from medsft.errors import MismatchError

_LARGEST_HEAD = 100_000_000
"""Bytes, as in the library."""
_MOST_DIMENSIONS = 8
BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
}
"""Bits of an element, by the format's name of its type."""
_AGAIN = "Copy or download the file again; compare its size with the original's."


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file of weights, of which only the description was read."""

    file: Path
    dtype: str
    """The type's name in safetensors (`BF16`), for other files too."""
    shape: tuple[int, ...]
    start: int | None = None
    """Where its bytes begin in the file, as plain numbers row by row; None where that is not known."""
    bytes: int = 0


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a file by name. Raises `MismatchError` for one that is cut, damaged, or not safetensors at all."""
    return dict(_read_once(path)[0])


def read_metadata(path: Path) -> dict[str, str]:
    """Return the texts that the head holds beside its tensors, by name. Raises `MismatchError` as `read_header` does."""
    return dict(_read_once(path)[1])


def _read_once(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    try:
        status = path.stat()
        return _read(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise MismatchError(f"{path}: cannot be read: {error.strerror or error}.") from None


@lru_cache(maxsize=512)
def _read(path: Path, size: int, _mtime_ns: int) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    with path.open("rb") as file:
        start = file.read(8)
        refuse_pointer(path, start + file.read(120))
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= min(_LARGEST_HEAD, size - 8):
            raise MismatchError(f"{path}: cut short, or no safetensors file ({size:,} bytes).", hint=_AGAIN)
        file.seek(8)
        head = parse_object(file.read(length), where=f"{path}: the head of the file")
    begin = 8 + length
    given = head.get("__metadata__")
    metadata = {name: value for name, value in given.items() if isinstance(value, str)} if isinstance(given, dict) else {}
    found = {name: _tensor(path, name, entry, begin) for name, entry in head.items() if name != "__metadata__"}
    end = max((tensor.start + tensor.bytes for tensor in found.values() if tensor.start is not None), default=begin)
    if end > size:
        raise MismatchError(f"{path}: cut short: it has {size:,} of {end:,} bytes.", hint=_AGAIN)
    if end < size or sum(tensor.bytes for tensor in found.values()) != size - begin:
        raise MismatchError(f"{path}: damaged: its tensors are not the {size:,} bytes that it has.", hint=_AGAIN)
    return found, metadata


def _tensor(path: Path, name: str, entry: Any, begin: int) -> StoredTensor:
    try:
        dtype, shape, (first, last) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise MismatchError(
            f"{path}: damaged: the head describes a tensor without type, shape and place.", hint=_AGAIN
        ) from None
    numbers = (*shape, first, last)
    whole = all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers)
    if not (isinstance(dtype, str) and whole and len(shape) <= _MOST_DIMENSIONS and first <= last):
        raise MismatchError(f"{path}: damaged: the head describes a tensor with odd numbers.", hint=_AGAIN)
    if dtype in BITS and math.prod(shape) * BITS[dtype] != 8 * (last - first):
        raise MismatchError(f"{path}: damaged: a tensor's shape and its place in the file disagree.", hint=_AGAIN)
    return StoredTensor(path, dtype, shape, begin + first, last - first)
