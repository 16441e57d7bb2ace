"""The options that say how rows are read: which formats use which of them, and how their values are written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from medsft.core.config.options import flag
from medsft.errors import Problem

FormatName = Literal["qa", "messages", "sharegpt", "alpaca", "mcq", "text"]
FORMATS: tuple[FormatName, ...] = get_args(FormatName)
QA, MESSAGES, SHAREGPT, ALPACA, MCQ, TEXT = FORMATS
_CONVERSATIONS = (MESSAGES, SHAREGPT)
USED_BY: Mapping[str, tuple[FormatName, ...]] = {
    "question_key": (QA, ALPACA, MCQ),
    "answer_key": (QA, ALPACA, MCQ),
    "system_key": (QA, *_CONVERSATIONS, ALPACA, MCQ),
    "messages_key": _CONVERSATIONS,
    "role_map": _CONVERSATIONS,
    "options_key": (MCQ,),
    "first_option": (MCQ,),
    "reasoning_key": (QA, *_CONVERSATIONS, ALPACA, MCQ),
    "text_key": (TEXT,),
    "group_key": FORMATS,
}
"""The formats of rows that an option of this name means something to."""
ROLES = ("system", "user", "assistant", "tool")


def possible_formats(chosen: str, given: Mapping[str, object]) -> tuple[FormatName, ...]:
    """Return the formats that `--format` and the row options that were given (name -> value, None: not given) leave open.

    A key of the question or of the answer means `qa`, as in the original, unless `--format` or `--options_key` says otherwise.
    """
    if chosen != "auto":
        return tuple(name for name in FORMATS if name == chosen)
    names = [name for name, value in given.items() if value is not None]
    left = tuple(name for name in FORMATS if all(name in USED_BY[option] for option in names))
    return (QA,) if QA in left and {"question_key", "answer_key"} & set(names) else left


def check_row_options(chosen: str, given: Mapping[str, object], *, files: int = 1) -> list[Problem]:
    """Return row options that contradict the format or each other, and values that cannot be read.

    Options of several formats contradict each other where there is one file: of several `files` each has its own, and without
    any they are for the rows of tokenized sets.
    """
    problems = []
    names = [name for name, value in given.items() if value is not None]
    if chosen != "auto":
        for name in names:
            if chosen in FORMATS and chosen not in USED_BY[name]:
                hint = f"It belongs to --format {' or '.join(USED_BY[name])}."
                problems.append(Problem(flag(name), f"has no meaning with --format {chosen}", hint))
    elif files == 1 and not possible_formats(chosen, given):
        listed = ", ".join(map(flag, names))
        problems.append(Problem(flag(names[0]), f"no format of rows has all of {listed}", "Leave out what is not meant."))
    role_map = given.get("role_map")
    if isinstance(role_map, str):
        try:
            read_role_map(role_map)
        except ValueError as error:
            problems.append(Problem("--role_map", str(error), "Write it as doctor=assistant,patient=user."))
    options = given.get("options_key")
    if isinstance(options, str) and not all(read_keys(options)):
        problems.append(Problem("--options_key", "a key is empty", "Write several as opa,opb,opc,opd."))
    return problems


def read_role_map(text: str) -> tuple[tuple[str, str], ...]:
    """Return (name in the rows in lower case, role) of each part of ``NAME=ROLE,NAME=ROLE``, sorted. Raises ValueError."""
    pairs: dict[str, str] = {}
    for part in text.split(","):
        name, equals, role = (word.strip().lower() for word in part.rpartition("="))
        if not name or not equals:
            raise ValueError(f"`{part.strip()}` is not NAME=ROLE")
        if role not in ROLES:
            raise ValueError(f"`{role}` is not one of {', '.join(ROLES)}")
        if pairs.get(name, role) != role:
            raise ValueError(f"`{name}` has two roles")
        pairs[name] = role
    return tuple(sorted(pairs.items()))


def read_keys(text: str) -> tuple[str, ...]:
    """Return the keys in a list with commas."""
    return tuple(part.strip() for part in text.split(","))
