"""Under which names the rows of a format hold their texts, told by the first of them; what a person gives is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from medsft.core.config.options import flag
from medsft.core.config.row_options import USED_BY, FormatName
from medsft.core.data.sources import usual_names
from medsft.core.data.sources.columns import Keys, shown
from medsft.core.data.sources.conversation import MessageRole
from medsft.core.data.sources.messages import USUAL_ROLES
from medsft.core.data.sources.row_format import RowFormat, RowFormats, distinct_formats
from medsft.core.data.sources.row_looks import ORIGINAL, Found, RowOptions, mcq_keys, messages_key

_SHOWN_PLACES = 3


@dataclass(slots=True)
class Seen:
    """The first rows of one format."""

    places: list[str] = field(default_factory=list)
    rows: int = 0
    keys: dict[str, int] = field(default_factory=dict)
    """Key -> rows that have it, in the order of the first row"""
    strings: dict[str, None] = field(default_factory=dict)
    """Keys with a string in one of the rows, in that order"""
    messages: str = ""
    """The key of the messages"""

    def add(self, place: str, found: Found, wanted: RowOptions) -> None:
        """Count a row."""
        self.rows += 1
        if len(self.places) < _SHOWN_PLACES:
            self.places.append(place)
        for key, value in found.items():
            self.keys[key] = self.keys.get(key, 0) + 1
            if isinstance(value, str):
                self.strings[key] = None
        self.messages = self.messages or messages_key(found, wanted) or ""


def together(seen: Iterable[Seen]) -> Seen:
    """Return what the rows of several files are like."""
    all_rows = Seen()
    for of_file in seen:
        all_rows.places += of_file.places[: _SHOWN_PLACES - len(all_rows.places)]
        all_rows.rows += of_file.rows
        for key, rows in of_file.keys.items():
            all_rows.keys[key] = all_rows.keys.get(key, 0) + rows
        all_rows.strings |= of_file.strings
        all_rows.messages = all_rows.messages or of_file.messages
    return all_rows


def find_keys(name: FormatName, wanted: RowOptions, seen: Seen, others: Seen) -> tuple[Keys, str]:
    """Return the keys of rows of a format, and the reason as a clause: empty where a person chose, or there are no rows.

    `others` are rows beside them that are of no format.
    """
    keys, reason = _FINDERS[name](wanted, seen, others)
    return replace(keys, group=wanted.group), reason


def differences_from(rows: RowFormats, wanted: RowOptions) -> list[str]:
    """Return in which of the options that were given the way in which rows were read is another, one line each."""
    lines: list[str] = []
    for of_file in distinct_formats(rows):
        if wanted.format not in ("auto", of_file.name):
            lines.append(f"--format was {of_file.name}, now {wanted.format}")
            continue
        given = {
            option: getattr(wanted, option.removesuffix("_key")) for option in wanted.given if of_file.name in USED_BY[option]
        }
        if "role_map" in given:
            given["role_map"] = _own_roles(wanted)
        keys = replace(of_file.keys, **{option.removesuffix("_key"): value for option, value in given.items()})
        lines += of_file.differences(RowFormat(name=of_file.name, keys=keys))
    return list(dict.fromkeys(lines))


def unused_options(sets: Iterable[RowFormats], wanted: RowOptions) -> list[str]:
    """Return which of the options that were given belong to a format that no rows of some sets were read as, one line each."""
    names = {of_file.name for rows in sets for of_file in distinct_formats(rows)}
    return [
        f"{flag(option)} is given, and no rows were read as {' or '.join(USED_BY[option])}"
        for option in wanted.given
        if wanted.format == "auto" and not names.intersection(USED_BY[option])
    ]


def _own_roles(wanted: RowOptions) -> tuple[tuple[str, MessageRole], ...]:
    """Return the names of roles that were given and do not mean this anyway."""
    return tuple((name, role) for name, role in wanted.role_map if USUAL_ROLES.get(name) != role)


def _qa(wanted: RowOptions, seen: Seen, others: Seen) -> tuple[Keys, str]:
    question, answer = wanted.question or ORIGINAL.question, wanted.answer or ORIGINAL.answer
    keys = Keys(question=question, answer=answer, system=wanted.system, reasoning=wanted.reasoning or "")
    if (wanted.question and wanted.answer) or not seen.rows:
        return keys, ""
    if question in seen.strings and answer in seen.strings:
        return keys, f"they have {named(question, answer)}"
    rows = seen.rows + others.rows
    in_all = [key for key in seen.strings if seen.keys[key] + others.keys.get(key, 0) == rows]
    questions = [question] if wanted.question else usual_names.usual(in_all, usual_names.QUESTION)
    answers = [answer] if wanted.answer else usual_names.usual(in_all, usual_names.ANSWER)
    if len(questions) != 1 or len(answers) != 1:
        return keys, ""  # a person has to choose: the rows lack the original's keys, which is an error that proposes others
    system = wanted.system or usual_names.first(seen.strings, usual_names.SYSTEM)
    missing = [
        key for key, given in ((question, wanted.question), (answer, wanted.answer)) if not given and key not in seen.keys
    ]
    reason = f"the usual names, as they have no {named(*missing)}"
    return replace(keys, question=questions[0], answer=answers[0], system=system), reason


def _conversations(usual_key: str, what: str) -> Callable[[RowOptions, Seen, Seen], tuple[Keys, str]]:
    def keys_of(wanted: RowOptions, seen: Seen, others: Seen) -> tuple[Keys, str]:
        key = wanted.messages or seen.messages or usual_key
        system = wanted.system or usual_names.first(seen.strings, usual_names.SYSTEM)
        keys = Keys(
            question="",
            answer="",
            messages=key,
            system=system,
            reasoning=wanted.reasoning or "",
            role_map=_own_roles(wanted),
        )
        return keys, f"{named(key)} is a list of {what}" if seen.rows else ""

    return keys_of


def _alpaca(wanted: RowOptions, seen: Seen, others: Seen) -> tuple[Keys, str]:
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
    return keys, f"they have {named(question, answer)}" if seen.rows else ""


def _mcq(wanted: RowOptions, seen: Seen, others: Seen) -> tuple[Keys, str]:
    question, options, answer = mcq_keys(seen.keys, wanted)
    if not wanted.answer:  # a letter or a text is safer than a number
        answer = mcq_keys([key for key in seen.keys if key in seen.strings], wanted)[2] or answer
    keys = Keys(
        question=question or "question",
        options=options or usual_names.OPTIONS[:1],
        answer=answer or "answer",
        system=wanted.system,
        reasoning=wanted.reasoning or "",
        first_option=wanted.first_option,
    )
    return keys, f"they have options, and the right one under {named(keys.answer)}" if seen.rows else ""


def _text(wanted: RowOptions, seen: Seen, others: Seen) -> tuple[Keys, str]:
    key = wanted.text or usual_names.first(seen.strings, usual_names.TEXT) or usual_names.TEXT[0]
    return Keys(question="", answer="", text=key), f"they have {named(key)}" if seen.rows else ""


_FINDERS: Mapping[FormatName, Callable[[RowOptions, Seen, Seen], tuple[Keys, str]]] = {
    "qa": _qa,
    "messages": _conversations("messages", "messages with a role"),
    "sharegpt": _conversations("conversations", "turns of ShareGPT"),
    "alpaca": _alpaca,
    "mcq": _mcq,
    "text": _text,
}
"""(what a person said, rows of this format, other rows) -> (keys, the reason)"""


def named(*keys: str) -> str:
    """Return keys as a sentence names them."""
    return " and ".join(shown([key]) for key in keys)
