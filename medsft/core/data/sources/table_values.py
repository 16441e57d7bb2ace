"""Values of Arrow arrays as JSON would give them: lists and structs are lists and dicts, dates and decimals their text.

Written array by array: pyarrow's own `to_pylist` takes several times as long for lists of structs, as conversations are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

_OTHER_BYTES = 4
"""Taken for a value that is no text, such as a number"""


def json_values(array: Any) -> list[Any]:
    """The values of an Arrow array. Binary ones that are not UTF-8 are no text, and null."""
    from pyarrow import large_string, types

    kind = array.type
    if types.is_string(kind) or types.is_large_string(kind):
        return array.to_numpy(zero_copy_only=False).tolist()
    if types.is_string_view(kind):
        return json_values(array.cast(large_string()))
    if types.is_dictionary(kind):
        return json_values(array.dictionary_decode())
    if types.is_struct(kind):
        names = [kind.field(number).name for number in range(kind.num_fields)]
        if not names:
            return array.to_pylist()
        columns = [json_values(column) for column in array.flatten()]
        return _with_nulls(array, [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)])
    if types.is_list(kind) or types.is_large_list(kind):
        items = json_values(array.values)
        return _with_nulls(array, [items[begin:end] for begin, end in _spans(array)])
    if types.is_map(kind):
        keys, items = json_values(array.keys), json_values(array.items)
        pairs = [(str(key), item) for key, item in zip(keys, items, strict=True)]
        return _with_nulls(array, [dict(pairs[begin:end]) for begin, end in _spans(array)])
    return [_plain(value) for value in array.to_pylist()]


def _spans(array: Any) -> list[tuple[int, int]]:
    """Where the items of each list begin and end."""
    return list(pairwise(array.offsets.to_pylist()))


def _with_nulls(array: Any, values: list[Any]) -> list[Any]:
    if not array.null_count:
        return values
    return [value if there else None for value, there in zip(values, array.is_valid().to_pylist(), strict=True)]


def _plain(value: object) -> object:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else None  # as tables write a number that is missing
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    return str(value)


def text_bytes(array: Any) -> npt.NDArray[np.int64]:
    """About how many bytes of text each value of an Arrow array has, [values]."""
    from pyarrow import compute, types

    kind = array.type
    if types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind):
        return np.asarray(compute.fill_null(compute.binary_length(array), 0).to_numpy(zero_copy_only=False), np.int64)
    if types.is_dictionary(kind):
        return text_bytes(array.dictionary)[compute.fill_null(array.indices, 0).to_numpy(zero_copy_only=False)]
    if types.is_struct(kind):
        return sum(map(text_bytes, array.flatten()), np.zeros(len(array), np.int64))
    if types.is_list(kind) or types.is_large_list(kind):
        ends = np.concatenate(([0], np.cumsum(text_bytes(array.values))))
        return np.diff(ends[array.offsets.to_numpy()])
    return np.full(len(array), _OTHER_BYTES, np.int64)
