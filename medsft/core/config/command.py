"""The command that asks for a run: what a wizard shows beside its form, and what other nodes are told to type."""

from __future__ import annotations

import shlex

from medsft.core.config.options import flag, format_number
from medsft.core.config.run_config import RunConfig, to_mapping


def command_line(config: RunConfig, *, command: str = "medsft sft") -> str:
    """Return the shell command that asks for the same run, with only what differs from the defaults."""
    words = command.split()
    for name, value in to_mapping(config, only_changed=True).items():
        if value is True:
            words.append(flag(name))
        elif isinstance(value, list):
            words += [flag(name), *value]
        else:
            words += [flag(name), format_number(value) if isinstance(value, float) else str(value)]
    return shlex.join(words)
