"""What a row is like: which formats its keys fit, by their usual names and by those that a person gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

from medsft.core.config.row_options import FormatName, possible_formats, read_keys, read_role_map
from medsft.core.data.sources import usual_names
from medsft.core.data.sources.base import BadRow
from medsft.core.data.sources.columns import Keys, RepeatedKey, members
from medsft.core.data.sources.conversation import MessageRole
from medsft.core.data.sources.messages import is_written_list, read_written_list

Found: TypeAlias = Mapping[str, object]
"""The keys of a row, and with dots those inside it, with what stands under them"""
ORIGINAL = Keys()
"""The keys of the original"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOptions:
    """What a person says of the rows; None and empty: not said."""

    format: FormatName | Literal["auto"] = "auto"
    question: str | None = None
    answer: str | None = None
    system: str | None = None
    messages: str | None = None
    options: tuple[str, ...] = ()
    reasoning: str | None = None
    text: str | None = None
    group: str | None = None
    role_map: tuple[tuple[str, MessageRole], ...] = ()
    first_option: int | None = None

    given: tuple[str, ...] = ()
    """Names of the options that were given"""

    @classmethod
    def of(cls, chosen: str, options: Mapping[str, Any]) -> RowOptions:
        """Build them from `--format` and the values of options, None for one that is not given. Raises ValueError."""
        role_map, first_option = options.get("role_map"), options.get("first_option")
        keys = {name.removesuffix("_key"): value for name, value in options.items() if name.endswith("_key")}
        keys["options"] = read_keys(keys["options"]) if keys.get("options") else ()
        return cls(
            format=cast(FormatName, chosen),
            role_map=cast(Any, read_role_map(role_map) if role_map else ()),
            first_option=first_option,
            given=tuple(name for name, value in options.items() if value is not None),
            **keys,
        )

    @property
    def named(self) -> tuple[FormatName, ...]:
        """The formats of a file whose rows have all the keys that were given; none where these are of several formats."""
        return possible_formats(self.format, dict.fromkeys(self.given, True))

    def there(self, name: FormatName, found: Found) -> bool:
        """Tell whether a row has those of the given keys that a row of this format cannot do without."""
        keys = [getattr(self, key) for key in _NEEDED[name]]
        columns = self.options if name == "mcq" else ()
        return all(key is None or key in found for key in keys) and (not columns or any(key in found for key in columns))


_NEEDED: Mapping[FormatName, tuple[str, ...]] = {
    "qa": ("question", "answer"),
    "messages": ("messages",),
    "sharegpt": ("messages",),
    "alpaca": ("question", "answer"),
    "mcq": ("question", "answer"),
    "text": ("text",),
}
"""What each row of a format has, as `RowOptions` calls it; beside the options of a question"""


def format_of_row(found: Found, wanted: RowOptions, possible: Sequence[FormatName]) -> FormatName | None:
    """Return the first of the possible formats that a row fits, None where it fits none."""
    return next((name for name, fits in _FITS if name in possible and fits(found, wanted)), None)


def messages_key(found: Found, wanted: RowOptions) -> str | None:
    """Return the key of a row's messages, None where it has none: that of a list, else of a list that is written as text."""
    lists = [key for key, value in found.items() if isinstance(value, list)]
    written = [key for key, value in found.items() if is_written_list(value)]
    return wanted.messages or usual_names.first(lists, usual_names.MESSAGES) or usual_names.first(written, usual_names.MESSAGES)


def mcq_keys(found: Iterable[str], wanted: RowOptions) -> tuple[str | None, tuple[str, ...], str | None]:
    """Return the keys of the question, of the options and of the right one; of several the first."""
    keys = list(found)
    question = wanted.question or usual_names.first(keys, usual_names.MCQ_QUESTION)
    options = wanted.options
    if not options:
        one = usual_names.first(keys, usual_names.OPTIONS)
        beside = [key for key in keys if key.rpartition(".")[0] == (question or "").rpartition(".")[0]]
        options = (one,) if one else usual_names.option_columns(beside)
    outside = [key for key in keys if not (options and key.startswith(f"{options[0]}."))]
    right = usual_names.usual(outside, usual_names.RIGHT_OPTION)
    return question, options, wanted.answer or next(iter(right), None)


def _is_original(found: Found, wanted: RowOptions) -> bool:
    """Whether a row has the keys of the question and the answer that were given, or else the original's."""
    keys = (wanted.question or ORIGINAL.question, wanted.answer or ORIGINAL.answer)
    return all(isinstance(found.get(key), str) for key in keys)


def _first_message(found: Found, wanted: RowOptions, *, written: bool) -> Found:
    """Return the fields of the first message; those of messages that are `written` as text only if this is asked for."""
    value = found.get(messages_key(found, wanted) or "")
    try:
        if written and is_written_list(value):
            value = read_written_list(str(value))
        return (members(value[0]) or {}) if isinstance(value, list) and value else {}
    except (RepeatedKey, BadRow):
        return {}


def _is_messages(found: Found, wanted: RowOptions, *, written: bool = False) -> bool:
    key = messages_key(found, wanted) or ""
    if wanted.format == "auto" and key.lower().rpartition(".")[2] == "conversations":
        return False  # ShareGPT's, whatever the fields of its turns are called
    return "role" in _first_message(found, wanted, written=written)


def _is_sharegpt(found: Found, wanted: RowOptions, *, written: bool = False) -> bool:
    return not {"from", "role"}.isdisjoint(_first_message(found, wanted, written=written))


def _is_mcq(found: Found, wanted: RowOptions) -> bool:
    question, options, answer = mcq_keys(found, wanted)
    if not (question and options and answer):
        return False
    return len(options) > 1 or isinstance(found.get(options[0]), list | dict | tuple)


def _is_alpaca(found: Found, wanted: RowOptions) -> bool:
    keys = (usual_names.first(found, usual_names.INSTRUCTION), usual_names.first(found, usual_names.OUTPUT))
    return all(key is not None and isinstance(found[key], str) for key in keys)


def _is_qa(found: Found, wanted: RowOptions) -> bool:
    question = wanted.question or usual_names.first(found, usual_names.QUESTION)
    answer = wanted.answer or usual_names.first(found, usual_names.ANSWER)
    return question is not None and answer is not None and question != answer


def _is_text(found: Found, wanted: RowOptions) -> bool:
    if wanted.text or wanted.format == "text":
        return isinstance(found.get(wanted.text or usual_names.first(found, usual_names.TEXT) or ""), str)
    others = usual_names.usual(found, (*usual_names.QUESTION, *usual_names.ANSWER))
    return not others and any(isinstance(value, str) for key, value in found.items() if key.lower() in usual_names.TEXT)


_FITS: Sequence[tuple[FormatName, Callable[[Found, RowOptions], bool]]] = (
    ("qa", _is_original),
    ("messages", _is_messages),
    ("sharegpt", _is_sharegpt),
    ("mcq", _is_mcq),
    ("alpaca", _is_alpaca),
    ("qa", _is_qa),
    ("text", _is_text),
    ("messages", lambda found, wanted: _is_messages(found, wanted, written=True)),
    ("sharegpt", lambda found, wanted: _is_sharegpt(found, wanted, written=True)),
)
"""In this order: the first that fits a row is its format"""
