"""What a person may type beyond what the parser knows: dashes in flags, and several files after one flag."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from medsft.core.files import at_home

MULTI_VALUED = frozenset({"--data", "--val", "--against", "--eval_task"})


def normalize(arguments: Sequence[str]) -> list[str]:
    """Return arguments for the parser: `--loss-mask` as `--loss_mask`, `--data a b` as `--data a --data b`.

    Other values, and everything after a bare `--`, stay as they are, but for a `~/` that no shell has written out.
    """
    return [_at_home(argument) for argument in _normalized(list(arguments))]


def _at_home(argument: str) -> str:
    """A shell leaves it as it is in `--to=~/models`, and a program that starts us everywhere."""
    name, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return f"{name}{equals}{at_home(Path(value))}" if value.startswith("~/") else argument


def _normalized(arguments: list[str]) -> Iterator[str]:
    flag = ""
    for argument, following in zip(arguments, [*arguments[1:], "-"], strict=False):
        if argument == "--":
            yield from arguments[arguments.index("--") :]
            return
        if argument.startswith("-") and argument != "-":
            name, equals, value = argument.partition("=")
            flag = "--" + name[2:].replace("-", "_") if name.startswith("--") else name
            if equals or flag not in MULTI_VALUED or following.startswith("-"):
                yield flag + equals + value
        elif flag in MULTI_VALUED:
            yield from (flag, argument)
        else:
            yield argument


def unknown_flags(arguments: Sequence[str], takes_value: Mapping[str, bool]) -> list[str]:
    """Return the long flags among normalized arguments that are not in `takes_value`, each once.

    That tells of each known flag whether the argument after it is its value, which may look like a flag.
    """
    unknown: dict[str, None] = {}
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            break
        name, equals, _ = argument.partition("=")
        if takes_value.get(name, False) and not equals:
            next(rest, None)
        elif name.startswith("--") and name not in takes_value and name != "--help":
            unknown[name] = None
    return list(unknown)
