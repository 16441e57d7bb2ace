"""What kind of row a file has, and under which names its texts stand: `RowFormat`, the one way from a row to a conversation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from medsft.core.data.sources.alpaca import alpaca
from medsft.core.data.sources.columns import Keys
from medsft.core.data.sources.conversation import Conversation
from medsft.core.data.sources.grouping import group_hash
from medsft.core.data.sources.messages import messages
from medsft.core.data.sources.multiple_choice import multiple_choice
from medsft.core.data.sources.plain_text import plain_text
from medsft.core.data.sources.question_answer import question_answer
from medsft.core.data.sources.sharegpt import sharegpt

FormatName = Literal["qa", "messages", "sharegpt", "alpaca", "mcq", "text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFormat:
    """How the rows of a set are read. Small, and can be pickled."""

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


_FIRST_KEYS = ("question", "answer", "system")
"""That medsft 0.1.0 knew and always wrote."""


_READERS: Mapping[FormatName, Callable[[Mapping[str, object], Keys], Conversation]] = {
    "qa": question_answer,
    "messages": messages,
    "sharegpt": sharegpt,
    "alpaca": alpaca,
    "mcq": multiple_choice,
    "text": plain_text,
}
