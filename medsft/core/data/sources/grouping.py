"""Which rows belong together, such as those of one patient: rows with the same value under `--group_key`.

Of the value only a hash is kept: the value itself may name a person. Two values with one hash stay together, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

from medsft.core.data.sources.base import BadRow
from medsft.core.data.sources.columns import names
from medsft.core.data.sources.values import found

_HASH_BYTES = 8
"""Two of a million different texts share a hash with a chance of 3 in 100 million."""


def short_hash(text: bytes) -> bytes:
    """Return a hash of eight bytes. It must stay as it is: hashes of rows and of groups lie beside sets on disk."""
    return sha256(text).digest()[:_HASH_BYTES]  # most processors have it built in, and hashlib uses that


def group_hash(row: Mapping[str, object], key: str) -> bytes:
    """Return a hash of the value under `key`, equal for equal values; 7 and "7" are equal, and so are "7" and " 7 ".

    Raises `BadRow` for a row without such a value: nobody could say with which rows that row belongs.
    """
    there, value = found(row, key)
    if not there:
        raise BadRow(f"nothing under '{key}', the key of --group_key", names(row))
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of numbers in which some are missing becomes one of floats in other programs
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise BadRow(f"'{key}' is neither text nor a number", names(row))
    text = str(value).strip()
    if not text:
        raise BadRow(f"empty value under '{key}'")
    return short_hash(text.encode("utf-8", "surrogatepass"))
