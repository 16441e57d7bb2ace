"""Between what a person types and a `RunConfig`. Pure functions; an empty text means the default."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsft.core.config.check import check
from medsft.core.config.options import field_types, flag, format_number
from medsft.core.config.row_options import QA, USED_BY
from medsft.core.config.run_config import RunConfig, from_mapping
from medsft.core.data.sources.endings import without_ending
from medsft.errors import ConfigError, Problem

if TYPE_CHECKING:
    from medsft.core.data.sources.columns import KeyProposal
    from medsft.core.data.sources.recognize import RecognizedFiles

FIELDS: dict[str, Field[Any]] = {f.name: f for f in fields(RunConfig)}
YES, NO, AUTO = "yes", "no", "auto"


def to_text(value: Any) -> str:
    """Return a value as it would be typed; None is empty, a list of paths is quoted where it has to be."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return YES if value else NO
    if isinstance(value, float):
        return format_number(value)
    if isinstance(value, tuple):
        return shlex.join(str(item) for item in value)
    return str(value)


def default_text(name: str, config: RunConfig | None = None) -> str:
    """Return the default of a field as it would be typed: of some that of a config with or without an adapter."""
    return to_text(FIELDS[name].default if config is None else config.default_of(FIELDS[name]))


def parse(texts: Mapping[str, str]) -> tuple[RunConfig, list[Problem]]:
    """Return the config that the texts give, and everything that is wrong; a wrong text leaves its field at the default."""
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, text in texts.items():
        if name not in FIELDS or not text.strip():
            continue
        try:
            value = _value(name, text.strip())
            from_mapping({name: value})
        except ConfigError as error:
            problems.extend(error.problems)
        else:
            values[name] = value
    config = from_mapping(values)
    wrong = {problem.where for problem in problems}
    return config, problems + [problem for problem in check(config) if problem.where not in wrong]


def _value(name: str, text: str) -> Any:
    kind, _, is_list = field_types(RunConfig)[name]
    if is_list:
        return [str(Path(item).expanduser()) for item in split_paths(text, flag(name))]
    if kind is bool:
        return text == YES
    if kind is Path:
        return str(Path(text).expanduser())
    return text


def split_paths(text: str, where: str) -> list[str]:
    """Split paths at spaces; one with a space is quoted. Raises `ConfigError` for a quote that is left open."""
    try:
        return shlex.split(text)
    except ValueError:
        raise ConfigError([Problem(where, "a quote is not closed", "Quote a path with spaces on both sides.")]) from None


def problems_of(name: str, problems: Iterable[Problem]) -> list[Problem]:
    """Return the problems that belong beside a field."""
    return [problem for problem in problems if flag(name) in problem.where.replace(",", " ").split()]


def choices_of(name: str) -> tuple[str, ...]:
    """Return what can be chosen, empty for a field that is typed. `AUTO` stands for a choice that is not made."""
    if field_types(RunConfig)[name][0] is bool:
        return (NO, YES)
    choices = tuple(FIELDS[name].metadata["choices"])
    return (AUTO, *choices) if choices and FIELDS[name].default is None else choices


def help_of(name: str) -> str:
    """Return the help of a field, with its unit where the words do not name it."""
    text, unit = str(FIELDS[name].metadata["help"]), FIELDS[name].metadata["unit"]
    return f"{text} ({unit})" if unit and unit not in text.lower() else text


def label_of(name: str) -> str:
    """Return a field's name for people."""
    return name.replace("_", " ")


def fields_in(group: str, *, advanced: bool) -> list[str]:
    """Return the names of a group's fields in the order of `RunConfig`."""
    return [n for n, f in FIELDS.items() if f.metadata["group"] == group and f.metadata["advanced"] == advanced]


def answered(problem: Problem, before: RunConfig, now: RunConfig) -> bool:
    """Tell whether the field that a problem of the last look names has been edited since."""
    name = problem.where.removeprefix("--")
    return name in FIELDS and getattr(before, name) != getattr(now, name)


def name_for(data: tuple[Path, ...]) -> str:
    """Return a run name from the first file, from its folder when the file's name says nothing."""
    stem = without_ending(data[0].name)
    name = data[0].resolve().parent.name if stem in ("train", "data", "train_data") else stem
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in name).strip("-._")


def proposals(
    texts: Mapping[str, str],
    proposed: Mapping[str, str],
    config: RunConfig,
    keys: KeyProposal,
    found: RecognizedFiles | None,
) -> dict[str, str]:
    """Return what rows and file name suggest, for fields that hold nothing or what was suggested before.

    Keys are suggested only where it could not be told from the rows how they are read: a key that is given decides that.
    """
    told = found is None or bool(found.reason)
    rows = None if found is None else found.rows
    no_system = rows is not None and not isinstance(rows, tuple) and rows.name == QA and not rows.keys.system
    wanted = {
        "run_name": name_for(config.data_files) if config.data else "",
        "question_key": "" if told else keys.question or "",
        "answer_key": "" if told else keys.answer or "",
        "system_key": keys.system or "" if no_system else "",
    }
    changes = {}
    for name, suggested in wanted.items():
        now = texts.get(name, "")
        text = "" if suggested == default_text(name) else suggested
        if text and text != now and now in ("", proposed.get(name)):
            changes[name] = text
    return changes


def told_key(field: str, found: RecognizedFiles | None) -> str:
    """Return the key that the rows of all files are read by where this field is empty; "" where that is its default, or none.

    Files that are read in several ways have no one key.
    """
    if found is None or len({one.rows for one in found.each}) != 1 or field not in _KEYS:
        return ""
    key = getattr(found.each[0].rows.keys, _KEYS[field])
    text = ",".join(key) if isinstance(key, tuple) else key or ""
    return "" if text == default_text(field) else text


_KEYS = {field: field.removesuffix("_key") for field in USED_BY if field.endswith("_key") and field != "group_key"}
"""The attribute of `Keys` that an option names."""


def row_fields(found: RecognizedFiles | None, texts: Mapping[str, str]) -> list[str]:
    """Return the fields for the keys of rows that mean something in their formats, and those that a person has filled in.

    While it is not known how the rows are read, these are the keys of a question and an answer.
    """
    names = {QA} if found is None else {one.rows.name for one in found.each}
    return [field for field, formats in USED_BY.items() if names.intersection(formats) or texts.get(field)]
