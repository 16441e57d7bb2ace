"""The names under which rows hold their texts: nested ones too, what a row has, and the text that nobody asked for.

A key may name a field of a field with a dot, as in ``data.text``; a field whose own name has the dot comes first. Messages
name keys, never what stands under them: that may be about a patient.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from medsft.core.data.sources import usual_names
from medsft.core.data.sources.conversation import MessageRole
from medsft.core.printable import one_line

_PROPOSED = (usual_names.QUESTION, usual_names.ANSWER, usual_names.SYSTEM)
_ID_NAMES = ("id", "uuid", "guid")
_SHOWN_KEYS = 12
_SHOWN_CHARACTERS = 40
_DEEPEST = 4
"""Fields of fields are looked at down to here."""
REPEATED = "the same key twice in one object"
"""The reason for which a row with a `RepeatedKey` cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """The names under which a row holds its texts, and what names and numbers inside them mean.

    Those that the format of the rows does not read are empty.
    """

    question: str = "prompt"
    answer: str = "gold"
    system: str | None = None
    """None: documents have no system message but those among their messages."""
    input: str = ""
    """What follows the instruction in a row like Alpaca's"""
    messages: str = ""
    """A list of messages"""
    options: tuple[str, ...] = ()
    """Of a multiple-choice question: the key of all of them, or one key for each"""
    reasoning: str = ""
    """What the assistant thinks before its last message"""
    text: str = ""
    role_map: tuple[tuple[str, MessageRole], ...] = ()
    """Names of roles beside the usual ones, in lower case and sorted"""
    first_option: int | None = None
    """Number of the first option in answers that are numbers; None where no answer is one"""

    group: str | None = None
    """What rows that belong together have in common, such as a patient's number. No text of a document; see `grouping`."""

    @property
    def used(self) -> tuple[str, ...]:
        """All keys that are read."""
        one_each = (self.question, self.answer, self.system, self.input, self.messages, self.reasoning, self.text)
        return (*(key for key in (*one_each, self.group) if key), *self.options)


class RepeatedKey(ValueError):
    """An object that has the same key twice, so that nobody can say which value is meant."""


def members(value: object) -> Mapping[str, object] | None:
    """The fields of a JSON object, None for anything else. An object is a dict, or a tuple of its (key, value) pairs.

    Raises `RepeatedKey`.
    """
    if isinstance(value, dict):
        return value
    if not isinstance(value, tuple):
        return None
    fields = dict(value)
    if len(fields) < len(value):
        raise RepeatedKey
    return fields


def find(row: Mapping[str, object], key: str) -> tuple[bool, object]:
    """Whether the row has the key, and what stands under it. Raises `RepeatedKey`."""
    if key in row:
        return True, row[key]
    node: object = row
    for part in key.split("."):
        fields = members(node)
        if fields is None or part not in fields:
            return False, None
        node = fields[part]
    return True, node


def names(row: Mapping[str, object]) -> list[str]:
    """The keys of a row in their order; those of objects inside it with dots."""
    return [name for name, _ in _leaves(row, "", 1)]


def string_names(row: Mapping[str, object]) -> list[str]:
    """Those of them with a string."""
    return [name for name, value in _leaves(row, "", 1) if isinstance(value, str)]


def nodes(row: Mapping[str, object], prefix: str = "", depth: int = 1) -> Iterator[tuple[str, object]]:
    """Yield the keys of a row and, with dots, those of the objects inside it, with what stands under each."""
    for key, value in row.items():
        yield prefix + key, value
        if depth < _DEEPEST and (inner := _members_or_none(value)):
            yield from nodes(inner, f"{prefix}{key}.", depth + 1)


def _leaves(row: Mapping[str, object], prefix: str, depth: int) -> Iterator[tuple[str, object]]:
    for key, value in row.items():
        inner = _members_or_none(value) if depth < _DEEPEST else None
        if inner:
            yield from _leaves(inner, f"{prefix}{key}.", depth + 1)
        else:
            yield prefix + key, value


def _members_or_none(value: object) -> Mapping[str, object] | None:
    try:
        return members(value)
    except RepeatedKey:
        return None


def unused_text(row: Mapping[str, object], used: Collection[str]) -> list[str]:
    """The keys under which a row has text that is not read. Identifiers are not text.

    An object counts as one, unless a used key lies inside it: then its fields are told apart.
    """
    return list(_unused(row, used, "", 1))


def _unused(row: Mapping[str, object], used: Collection[str], prefix: str, depth: int) -> Iterator[str]:
    for key, value in row.items():
        name = prefix + key if prefix else key
        if value is None or name in used or _is_identifier(key):
            continue
        if isinstance(value, str):  # first, as nearly all are
            if value and not value.isspace():
                yield name
            continue
        if not _holds_text(value, depth):
            continue
        inner = _members_or_none(value) if any(one.startswith(f"{name}.") for one in used) else None
        if inner is None:
            yield name
        else:
            yield from _unused(inner, used, f"{name}.", depth + 1)


@lru_cache(maxsize=1024)
def _is_identifier(key: str) -> bool:
    lowered = key.lower()
    return lowered in _ID_NAMES or lowered.endswith("_id")


def _holds_text(value: object, depth: int) -> bool:
    if isinstance(value, str):
        return bool(value) and not value.isspace()
    if depth > _DEEPEST:
        return False
    if isinstance(value, list):
        return any(_holds_text(item, depth + 1) for item in value)
    fields = _members_or_none(value)
    return fields is not None and any(_holds_text(item, depth + 1) for item in fields.values())


def shown(keys: Sequence[str]) -> str:
    """Keys as a message names them: not too many, not too long, nothing that a terminal would obey."""
    listed = ", ".join(f"`{_shown(key)}`" for key in keys[:_SHOWN_KEYS])
    return f"{listed} and {len(keys) - _SHOWN_KEYS} more" if len(keys) > _SHOWN_KEYS else listed


def _shown(key: str) -> str:
    cut = key if len(key) <= _SHOWN_CHARACTERS else f"{key[:_SHOWN_CHARACTERS]}..."
    return one_line(cut)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyProposal:
    """What the first rows of a file look like."""

    question: str | None
    answer: str | None
    system: str | None
    keys: tuple[str, ...]
    """Every key with a string under it in all of the rows looked at, in the order of the first row."""


def proposal(keys: Iterable[str]) -> KeyProposal:
    """Propose by the usual names, of fields of the row before fields of its objects; None where there is no such name."""
    keys = tuple(keys)
    question, answer, system = (usual_names.first(keys, names) for names in _PROPOSED)
    return KeyProposal(question=question, answer=answer, system=system, keys=keys)
