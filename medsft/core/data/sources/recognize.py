"""Which row format files have: told by the first rows of all of them, with the reason in one sentence.

    first rows --_look--> what each row is like --_agreed--> one format --_keys--> RowFormat

A format and keys that a person gives are taken; only the others are looked for. Rows with the original's `prompt` and `gold`
are read as they always were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from medsft.core.config.row_options import possible_formats, read_keys, read_role_map
from medsft.core.data.sources import usual_names
from medsft.core.data.sources.base import BadRow, all_rows
from medsft.core.data.sources.columns import Keys, RepeatedKey, members, nodes, shown
from medsft.core.data.sources.conversation import MessageRole
from medsft.core.data.sources.messages import USUAL_ROLES
from medsft.core.data.sources.multiple_choice import possible_first_options
from medsft.core.data.sources.open import open_rows
from medsft.core.data.sources.row_format import FormatName, RowFormat
from medsft.errors import DataError

_LOOKED_AT = 50
"""Rows of each file whose format is told."""
_COUNTED = 1000
"""Rows of each file that are looked at for the number of the first option: of four options, one tells it."""
_SHOWN_PLACES = 3
_ORIGINAL = Keys()


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


class Recognized(NamedTuple):
    """How rows are read, and why."""

    rows: RowFormat
    reason: str
    """A clause for people; empty where a person chose the format and every key, or there are no rows to look at"""

    @property
    def sentence(self) -> str:
        """What a person should know of it."""
        reason = f" ({self.reason})" if self.reason else ""
        return f"{self.rows.sentence()}{reason}."


@dataclass(slots=True)
class _Seen:
    """The first rows of one format."""

    places: list[str] = field(default_factory=list)
    rows: int = 0
    keys: dict[str, int] = field(default_factory=dict)
    """Key -> rows that have it, in the order of the first row"""
    strings: dict[str, None] = field(default_factory=dict)
    """Keys with a string in one of the rows, in that order"""
    messages: str = ""
    """The key of the messages"""

    def add(self, place: str, found: Mapping[str, object]) -> None:
        self.rows += 1
        if len(self.places) < _SHOWN_PLACES:
            self.places.append(place)
        for key, value in found.items():
            self.keys[key] = self.keys.get(key, 0) + 1
            if isinstance(value, str):
                self.strings[key] = None


def recognize(files: Sequence[Path], wanted: RowOptions = RowOptions()) -> Recognized:
    """Return how the rows of files are read. Reads the first rows of each; without files, only what was given counts.

    Raises DataError for a file that cannot be read, for rows that are not all of one format, and for answers that are numbers
    of options where nothing tells from which number options count.
    """
    possible = possible_formats(wanted.format, dict.fromkeys(wanted.given, True))
    seen = _look(files, wanted, possible)
    name = _agreed(seen, possible)
    keys, reason = _KEYS[name](wanted, seen.get(name, _Seen()), seen.get(None, _Seen()))
    if name == "mcq" and name in seen and wanted.first_option is None:
        keys, counted = _with_first_option(files, keys)
        reason += counted
    return Recognized(RowFormat(name=name, keys=replace(keys, group=wanted.group)), reason)


def _look(files: Sequence[Path], wanted: RowOptions, possible: Sequence[str]) -> dict[FormatName | None, _Seen]:
    """Return what the first rows of all files are like, by format; None for rows that are of none that is possible."""
    seen: dict[FormatName | None, _Seen] = {}
    for place, row in _first_rows(files, _LOOKED_AT):
        found = dict(nodes(row))
        name = next((name for name, fits in _FITS if name in possible and fits(found, wanted)), None)
        of_format = seen.setdefault(name, _Seen())
        of_format.add(place, found)
        if name in ("messages", "sharegpt") and not of_format.messages:
            of_format.messages = _messages_key(found, wanted) or ""
    return seen


def _first_rows(files: Sequence[Path], most: int) -> Iterator[tuple[str, Mapping[str, object]]]:
    for path in files:
        source = open_rows(path)
        for row in islice(all_rows(source), most):
            if not isinstance(row.content, BadRow):
                yield source.place(row.number), row.content


def _agreed(seen: Mapping[FormatName | None, _Seen], possible: Sequence[str]) -> FormatName:
    """Return the one format of the rows, or the one to name what is missing by. Raises DataError when there are several."""
    found = [name for name in seen if name is not None]
    if len(found) > 1:
        lines = [f"{name}: {', '.join(seen[name].places)}" for name in found]
        raise DataError(
            "the rows are not all of one format:\n" + "\n".join(lines),
            hint=f"make them alike, or choose one such as --format {found[0]} and leave the others out with --bad_rows skip",
        )
    return found[0] if found else next(name for name in _KEYS if name in possible)


# --- what a row is like --------------------------------------------------------------------------------------------

_Found = Mapping[str, object]
"""The keys of a row, and with dots those inside it, with what stands under them"""


def _is_original(found: _Found, wanted: RowOptions) -> bool:
    """Whether a row has the keys of the question and the answer that were given, or else the original's."""
    keys = (wanted.question or _ORIGINAL.question, wanted.answer or _ORIGINAL.answer)
    return all(isinstance(found.get(key), str) for key in keys)


def _messages_key(found: _Found, wanted: RowOptions) -> str | None:
    lists = [key for key, value in found.items() if isinstance(value, list)]
    return wanted.messages or usual_names.first(lists, usual_names.MESSAGES)


def _first_message(found: _Found, wanted: RowOptions) -> _Found:
    value = found.get(_messages_key(found, wanted) or "")
    try:
        return (members(value[0]) or {}) if isinstance(value, list) and value else {}
    except RepeatedKey:
        return {}


def _is_messages(found: _Found, wanted: RowOptions) -> bool:
    key = _messages_key(found, wanted) or ""
    if wanted.format == "auto" and key.lower().rpartition(".")[2] == "conversations":
        return False  # ShareGPT's, whatever the fields of its turns are called
    return "role" in _first_message(found, wanted)


def _is_sharegpt(found: _Found, wanted: RowOptions) -> bool:
    return not {"from", "role"}.isdisjoint(_first_message(found, wanted))


def _is_mcq(found: _Found, wanted: RowOptions) -> bool:
    question, options, answer = _mcq_keys(found, wanted)
    if not (question and options and answer):
        return False
    return len(options) > 1 or isinstance(found.get(options[0]), list | dict | tuple)


def _mcq_keys(found: Iterable[str], wanted: RowOptions) -> tuple[str | None, tuple[str, ...], str | None]:
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


def _is_alpaca(found: _Found, wanted: RowOptions) -> bool:
    keys = (usual_names.first(found, usual_names.INSTRUCTION), usual_names.first(found, usual_names.OUTPUT))
    return all(key is not None and isinstance(found[key], str) for key in keys)


def _is_qa(found: _Found, wanted: RowOptions) -> bool:
    question = wanted.question or usual_names.first(found, usual_names.QUESTION)
    answer = wanted.answer or usual_names.first(found, usual_names.ANSWER)
    return question is not None and answer is not None and question != answer


def _is_text(found: _Found, wanted: RowOptions) -> bool:
    if wanted.text or wanted.format == "text":
        return isinstance(found.get(wanted.text or usual_names.first(found, usual_names.TEXT) or ""), str)
    others = usual_names.usual(found, (*usual_names.QUESTION, *usual_names.ANSWER))
    return not others and any(isinstance(value, str) for key, value in found.items() if key.lower() in usual_names.TEXT)


_FITS: Sequence[tuple[FormatName, Callable[[_Found, RowOptions], bool]]] = (
    ("qa", _is_original),
    ("messages", _is_messages),
    ("sharegpt", _is_sharegpt),
    ("mcq", _is_mcq),
    ("alpaca", _is_alpaca),
    ("qa", _is_qa),
    ("text", _is_text),
)
"""In this order: the first that fits a row is its format"""


# --- keys ----------------------------------------------------------------------------------------------------------


def _qa(wanted: RowOptions, seen: _Seen, others: _Seen) -> tuple[Keys, str]:
    question, answer = wanted.question or _ORIGINAL.question, wanted.answer or _ORIGINAL.answer
    keys = Keys(question=question, answer=answer, system=wanted.system, reasoning=wanted.reasoning or "")
    if (wanted.question and wanted.answer) or not seen.rows:
        return keys, ""
    if question in seen.strings and answer in seen.strings:
        return keys, f"they have {_named(question, answer)}"
    rows = seen.rows + others.rows
    in_all = [key for key in seen.strings if seen.keys[key] + others.keys.get(key, 0) == rows]
    questions = [question] if wanted.question else usual_names.usual(in_all, usual_names.QUESTION)
    answers = [answer] if wanted.answer else usual_names.usual(in_all, usual_names.ANSWER)
    if len(questions) != 1 or len(answers) != 1:
        return keys, ""  # a person has to choose: the rows lack the original's keys, which is an error that proposes others
    system = wanted.system or usual_names.first(seen.strings, usual_names.SYSTEM)
    reason = (
        f"the usual names, as they have no {' and '.join(_named(key) for key in (question, answer) if key not in seen.keys)}"
    )
    return replace(keys, question=questions[0], answer=answers[0], system=system), reason


def _conversations(usual_key: str, what: str) -> Callable[[RowOptions, _Seen, _Seen], tuple[Keys, str]]:
    def keys_of(wanted: RowOptions, seen: _Seen, others: _Seen) -> tuple[Keys, str]:
        key = wanted.messages or seen.messages or usual_key
        system = wanted.system or usual_names.first(seen.strings, usual_names.SYSTEM)
        role_map = tuple((name, role) for name, role in wanted.role_map if USUAL_ROLES.get(name) != role)
        keys = Keys(question="", answer="", messages=key, system=system, reasoning=wanted.reasoning or "", role_map=role_map)
        return keys, f"{_named(key)} is a list of {what}" if seen.rows else ""

    return keys_of


def _alpaca(wanted: RowOptions, seen: _Seen, others: _Seen) -> tuple[Keys, str]:
    question = wanted.question or usual_names.first(seen.strings, usual_names.INSTRUCTION) or "instruction"
    beside = [key for key in seen.strings if key.rpartition(".")[0] == question.rpartition(".")[0] and key != question]
    answer = wanted.answer or usual_names.first(beside, usual_names.OUTPUT) or "output"
    given = usual_names.first([key for key in beside if key != answer], usual_names.INPUT)
    keys = Keys(
        question=question,
        input=given or f"{question.removesuffix(question.rpartition('.')[2])}input",
        answer=answer,
        system=wanted.system or usual_names.first(beside, usual_names.SYSTEM),
        reasoning=wanted.reasoning or "",
    )
    return keys, f"they have {_named(question, answer)}" if seen.rows else ""


def _mcq(wanted: RowOptions, seen: _Seen, others: _Seen) -> tuple[Keys, str]:
    question, options, answer = _mcq_keys(seen.keys, wanted)
    if not wanted.answer:  # a letter or a text is safer than a number
        answer = _mcq_keys([key for key in seen.keys if key in seen.strings], wanted)[2] or answer
    keys = Keys(
        question=question or "question",
        options=options or usual_names.OPTIONS[:1],
        answer=answer or "answer",
        system=wanted.system,
        reasoning=wanted.reasoning or "",
        first_option=wanted.first_option,
    )
    return keys, f"they have options, and the right one under {_named(keys.answer)}" if seen.rows else ""


def _text(wanted: RowOptions, seen: _Seen, others: _Seen) -> tuple[Keys, str]:
    key = wanted.text or usual_names.first(seen.strings, usual_names.TEXT) or usual_names.TEXT[0]
    return Keys(question="", answer="", text=key), f"they have {_named(key)}" if seen.rows else ""


_KEYS: Mapping[FormatName, Callable[[RowOptions, _Seen, _Seen], tuple[Keys, str]]] = {
    "qa": _qa,
    "messages": _conversations("messages", "messages with a role"),
    "sharegpt": _conversations("conversations", "turns of ShareGPT"),
    "alpaca": _alpaca,
    "mcq": _mcq,
    "text": _text,
}
"""What finds the keys of a format: (what a person said, rows of this format, other rows) -> (keys, the reason)"""


def _named(*keys: str) -> str:
    return " and ".join(shown([key]) for key in keys)


def _with_first_option(files: Sequence[Path], keys: Keys) -> tuple[Keys, str]:
    """Return the keys with the number of the first option, where answers are numbers. Raises DataError when it is not clear."""
    telling: dict[int, str] = {}
    numbers = False
    for place, row in _first_rows(files, _COUNTED):
        try:
            possible = possible_first_options(row, keys)
        except BadRow:
            continue
        numbers = numbers or possible is not None
        if possible is not None and len(possible) == 1:
            telling.setdefault(next(iter(possible)), place)
    if not numbers:
        return keys, ""
    answer = _named(keys.answer)
    if len(telling) == 1:
        ((number, place),) = telling.items()
        return replace(keys, first_option=number), f"; the numbers under {answer} count from {number}, as {place} shows"
    if telling:
        found = f"the numbers under {answer} count options from 0 in {telling[0]} and from 1 in {telling[1]}"
    else:
        found = f"the numbers under {answer} may count options from 0 or from 1: no row tells which"
    raise DataError(found, hint="give --first_option 0 or 1 (MedMCQA: 1 in its original files, 0 in those of the hub)")
