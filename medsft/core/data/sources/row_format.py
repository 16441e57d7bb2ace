"""What kind of row a file has, and under which names its texts stand: `RowFormat`, the one way from a row to a conversation.

Each file has its own. `RowFormats` is the one of all files, or one for each; what is written for one is as medsft 0.1.0 had it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from medsft.core.config.row_options import FormatName
from medsft.core.data.sources.alpaca import alpaca
from medsft.core.data.sources.columns import Keys, shown
from medsft.core.data.sources.conversation import Conversation
from medsft.core.data.sources.grouping import group_hash
from medsft.core.data.sources.messages import messages
from medsft.core.data.sources.multiple_choice import multiple_choice
from medsft.core.data.sources.plain_text import plain_text
from medsft.core.data.sources.question_answer import question_answer
from medsft.core.data.sources.sharegpt import sharegpt


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFormat:
    """How the rows of a file are read. Small, and can be pickled."""

    name: FormatName = "qa"
    keys: Keys = Keys()

    def conversation(self, row: Mapping[str, object]) -> Conversation:
        """Return what a row says. Raises `BadRow` with the reason for which it cannot be used, never with its text."""
        if self.keys.group is not None:
            self.group(row)
        return _READERS[self.name](row, self.keys)

    def group(self, row: Mapping[str, object]) -> bytes:
        """Return a hash that rows which belong together share, see `grouping`; nothing without a key. Raises `BadRow`."""
        return b"" if self.keys.group is None else group_hash(row, self.keys.group)

    def words(self) -> str:
        """Return the name of the format and under which keys its texts stand, as "qa: question `prompt`, answer `gold`"."""
        keys = self.keys
        parts = [f"{what} {shown([key])}" for name, what in _CALLED.items() if (key := getattr(keys, name))]
        parts += [f"options {shown(keys.options)}"] if keys.options else []
        parts += [f"options count from {keys.first_option}"] if keys.first_option is not None else []
        parts += [f"roles {', '.join('='.join(pair) for pair in keys.role_map)}"] if keys.role_map else []
        return f"{self.name}: {', '.join(parts)}"

    def sentence(self, of: str = "") -> str:
        """Return in a few words how rows are read, without the full stop; `of` says which, such as " of a.jsonl"."""
        return f"Rows{of} are read as {self.words()}"

    def differences(self, now: RowFormat) -> list[str]:
        """Return what is decided otherwise now, one line each."""
        if self.name != now.name:
            return [f"--format was {self.name}, now {now.name}"]
        lines = []
        for name, was in asdict(self.keys).items():
            if (value := getattr(now.keys, name)) != was:
                option = _OPTIONS.get(name, f"--{name}_key")
                lines.append(f"{option} was {_typed(was)}, now {_typed(value)}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return what a manifest keeps. That of `qa` is what medsft 0.1.0 wrote."""
        always = _FIRST_KEYS if self.name == "qa" else ()
        given = {name: value for name, value in asdict(self.keys).items() if name in always or value not in (None, "", ())}
        return {"keys": given} if self.name == "qa" else {"format": self.name, "keys": given}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> RowFormat:
        """Return the format in a manifest, here or of medsft 0.1.0. Raises KeyError or TypeError when there is none."""
        name, keys = raw.get("format", "qa"), {"question": "", "answer": "", **raw["keys"]}
        if name not in _READERS:
            raise KeyError(name)
        keys["options"] = tuple(keys.get("options", ()))
        keys["role_map"] = tuple((theirs, ours) for theirs, ours in keys.get("role_map", ()))
        return cls(name=name, keys=Keys(**keys))


RowFormats: TypeAlias = RowFormat | tuple[RowFormat, ...]
"""How the rows of some files are read: one format for all of them, or one for each, in their order."""


def one_or_each(formats: Sequence[RowFormat]) -> RowFormats:
    """Return the format of all files where they have the same, else those of each. No files have the original's."""
    distinct = set(formats)
    return tuple(formats) if len(distinct) > 1 else next(iter(distinct), RowFormat())


def format_of(rows: RowFormats, file: int) -> RowFormat:
    """Return how the rows of a file are read, by its number among the files."""
    return rows if isinstance(rows, RowFormat) else rows[file]


def distinct_formats(rows: RowFormats) -> tuple[RowFormat, ...]:
    """Return each format of some files once, in the order of the first file of each."""
    return (rows,) if isinstance(rows, RowFormat) else tuple(dict.fromkeys(rows))


def formats_to_json(rows: RowFormats) -> dict[str, Any]:
    """Return what a manifest keeps: of one format its fields, of several `rows`, a list with those of each file."""
    return rows.to_json() if isinstance(rows, RowFormat) else {"rows": [of_file.to_json() for of_file in rows]}


def formats_from_json(raw: Mapping[str, Any], files: int) -> RowFormats:
    """Return the formats in a manifest of so many files. Raises KeyError, TypeError or ValueError when it has none."""
    if "rows" not in raw:
        return RowFormat.from_json(raw)
    formats = tuple(map(RowFormat.from_json, raw["rows"]))
    if len(formats) != files:
        raise ValueError("a format for each file is needed")
    return one_or_each(formats)


_CALLED = {
    "question": "question",
    "input": "input",
    "answer": "answer",
    "messages": "messages",
    "text": "text",
    "system": "system message",
    "reasoning": "reasoning",
}
"""The keys of one text each, and what people call it"""
_OPTIONS = {"input": "the key of the input", "role_map": "--role_map", "first_option": "--first_option"}
"""Of keys whose option has another name than `--NAME_key`"""
_FIRST_KEYS = ("question", "answer", "system")
"""That medsft 0.1.0 knew and always wrote."""


def _typed(value: object) -> str:
    """Return a value as a person types it."""
    if isinstance(value, tuple):
        value = ",".join("=".join(item) if isinstance(item, tuple) else item for item in value)
    return "not given" if value in (None, "") else str(value)


_READERS: Mapping[FormatName, Callable[[Mapping[str, object], Keys], Conversation]] = {
    "qa": question_answer,
    "messages": messages,
    "sharegpt": sharegpt,
    "alpaca": alpaca,
    "mcq": multiple_choice,
    "text": plain_text,
}
