"""Options as fields of a frozen dataclass: each is described once, and flags, forms, files and checks are made from that."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, fields
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from medsft.core.files import at_home
from medsft.core.other_tools import did_you_mean, suggestion
from medsft.errors import ConfigError, Problem

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_LARGEST_WHOLE_NUMBER = 10**9
"""Of options that have no limit of their own: more is a slip of the keyboard, and the arithmetic of a plan overflows."""


class Default(float):
    """A number that nobody has given: the default of an option whose default depends on another option.

    It counts as not given: it changes with the other option, and neither a TOML file nor a command line repeats it.
    """


def option(
    default: Any,
    help_text: str,
    group: str = "",
    *,
    unit: str = "",
    choices: Sequence[str] = (),
    elsewhere: Mapping[str, str] = MappingProxyType({}),
    with_adapter: float | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    advanced: bool = False,
    argument: str = "",
    only_on: bool = False,
) -> Any:
    """Describe one field. A default of `MISSING` means that a value is needed.

    `elsewhere` has values that other tools know and this option does not, each with a sentence that says what to take.

    `with_adapter` is the default of a number in a run that trains an adapter, where that is another one.

    `minimum` and `maximum` are allowed, `above` and `below` are not. `advanced` options are folded in the wizard. One with
    `argument` is no flag: a command takes it by its place, and its help shows that word for it. The flag of a bool has an
    opposite, `--no_NAME`, unless it is `only_on`.
    """
    metadata = {
        "help": help_text,
        "group": group,
        "unit": unit,
        "choices": tuple(choices),
        "elsewhere": elsewhere,
        "with_adapter": with_adapter,
        "minimum": minimum,
        "maximum": maximum,
        "above": above,
        "below": below,
        "advanced": advanced,
        "argument": argument,
        "only_on": only_on,
    }
    return field(default=default if with_adapter is None else Default(default), metadata=metadata)


@cache
def field_types(kind: type[DataclassInstance]) -> Mapping[str, tuple[type, bool, bool]]:
    """Return for each field (plain type, may be None, is a list)."""
    result = {}
    for name, hint in get_type_hints(kind).items():
        arguments = [a for a in get_args(hint) if a not in (type(None), ...)]
        optional = type(None) in get_args(hint)
        is_list = getattr(hint, "__origin__", None) is tuple
        result[name] = (arguments[0] if arguments else hint, optional, is_list)
    return result


def flag(name: str) -> str:
    """Return the flag of a field as a person types it."""
    return f"--{name}"


def converted(kind: type[DataclassInstance], values: Mapping[str, Any], *, where: str = "") -> dict[str, Any]:
    """Return plain values (TOML, flags, forms) as the fields of `kind` hold them.

    `where` names the source in errors. Raises `ConfigError` with every unknown name and every value of a wrong type.
    """
    problems: list[Problem] = []
    known = field_types(kind)
    result: dict[str, Any] = {}
    for name, value in values.items():
        place = f"{where}: {name}" if where else flag(name)
        if name not in known:
            problems.append(Problem(place, "there is no such option", suggestion(name, known)))
            continue
        try:
            result[name] = _convert(*known[name], value)
        except (TypeError, ValueError) as error:
            problems.append(Problem(place, str(error)))
    if problems:
        raise ConfigError(problems)
    return result


def _convert(kind: type, optional: bool, is_list: bool, value: Any) -> Any:
    if value is None:
        if optional:
            return None
        raise ValueError("a value is needed")
    if is_list:
        items = [value] if isinstance(value, (str, Path)) else value
        if not isinstance(items, (list, tuple)):
            raise ValueError(f"must be a list, not {value!r}")
        return tuple(_text(kind, item) for item in items)
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise ValueError(f"must be true or false, not {value!r}")
    if kind is int:
        if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
            raise ValueError(f"must be a whole number, not {value!r}")
        return _number(int, value, "a whole number")
    if kind is float:
        if isinstance(value, bool):
            raise ValueError(f"must be a number, not {value!r}")
        return _number(float, value, "a number")
    return _text(kind, value)


def _text(kind: type, value: Any) -> Any:
    if not isinstance(value, (str, Path)):
        raise ValueError(f"must be text, not {value!r}")
    if kind is Path and value == "":  # as of a shell's variable that is not set; Path would take it for this folder
        raise ValueError("a path is needed, and this one is empty")
    return at_home(kind(value))


def _number(kind: type, value: Any, expected: str) -> Any:
    try:
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"must be {expected}, not {value!r}") from None


def plain(options: DataclassInstance) -> dict[str, Any]:
    """Return the fields as values that TOML and JSON can hold; None is left out. `converted` is the inverse."""
    result: dict[str, Any] = {}
    for f in fields(options):
        value = getattr(options, f.name)
        if value is None:
            continue
        simple = str(value) if isinstance(value, Path) else float(value) if isinstance(value, Default) else value
        result[f.name] = [str(item) for item in simple] if isinstance(simple, tuple) else simple
    return result


def check_types(options: DataclassInstance, *, place: Callable[[str], str] = flag) -> list[Problem]:
    """Return each value that is not of its field's type, such as Python code may give, under what `place` makes of its name.

    Nothing is converted here: a config equals another one only with the same values. A whole number is a number, too.
    """
    problems = []
    for name, (kind, optional, is_list) in field_types(type(options)).items():
        value = getattr(options, name)
        if value is None and optional:
            continue
        expected, remedy = _expected(kind, is_list), ""
        if is_list:
            right = isinstance(value, tuple) and all(_is_a(kind, item) for item in value)
            items = value if isinstance(value, (list, tuple)) else [value]
            if kind is Path and all(isinstance(item, (str, Path)) for item in items):
                remedy = f"Write ({', '.join(f'Path({str(item)!r})' for item in items)},)."
        else:
            right = _is_a(kind, value)
            if kind is Path and isinstance(value, str):
                remedy = f"Write Path({value!r})."
        if not right:
            problems.append(Problem(place(name), f"must be {expected}, not {value!r}", remedy))
    return problems


def _is_a(kind: type, value: Any) -> bool:
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, kind)


def _expected(kind: type, is_list: bool) -> str:
    if is_list:
        return "a tuple of paths" if kind is Path else "a tuple of texts"
    return {bool: "true or false", int: "a whole number", float: "a number", Path: "a path", str: "text"}[kind]


def check_ranges(options: DataclassInstance) -> list[Problem]:
    """Return each value that is none of its choices or beyond its limits, under the flag that a person types."""
    return [problem for f in fields(options) for problem in _check_range(flag(f.name), f.metadata, getattr(options, f.name))]


def _check_range(where: str, metadata: Mapping[str, Any], value: Any) -> list[Problem]:
    if value is None:
        return []
    choices, low, high = metadata["choices"], metadata["minimum"], metadata["maximum"]
    above, below = metadata["above"], metadata["below"]
    if isinstance(value, float) and not math.isfinite(value):  # a comparison with nan holds for no limit
        return [Problem(where, f"{value} is not a finite number")]
    if isinstance(value, int) and high is None:
        high = _LARGEST_WHOLE_NUMBER
    if choices and value not in choices:
        hint = metadata["elsewhere"].get(str(value).lower()) or did_you_mean(str(value), choices)
        return [Problem(where, f"`{value}` is not one of {', '.join(choices)}", hint)]
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    if (low is not None and value < low) or (above is not None and value <= above):
        return [
            Problem(where, f"{shown} is too small", f"Must be {f'{low:g} or more' if above is None else f'above {above:g}'}.")
        ]
    if (high is not None and value > high) or (below is not None and value >= below):
        most = f"{_written(high)} or less" if below is None else f"below {_written(below)}"
        return [Problem(where, f"{shown} is too large", f"Must be {most}.")]
    return []


def _written(limit: float) -> str:
    return str(limit) if isinstance(limit, int) else format_number(limit)


def format_number(value: float) -> str:
    """Return 7.0 as `7`, 0.135 as `0.135`: as a person would type it."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))
