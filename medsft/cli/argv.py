"""What a person may type beyond what the parser knows: dashes in flags, and several files after one flag."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

MULTI_VALUED = frozenset({"--data", "--val"})


def normalise(arguments: Sequence[str]) -> list[str]:
    """Return arguments for the parser: `--loss-mask` as `--loss_mask`, `--data a b` as `--data a --data b`.

    Values, and everything after a bare `--`, stay as they are.
    """
    return list(_normalised(list(arguments)))


def _normalised(arguments: list[str]) -> Iterator[str]:
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
