"""The question that `--no_autoaccept_iters` asks for."""

from __future__ import annotations

import sys

import typer

from medsft.cli import console
from medsft.core.units import counted
from medsft.errors import ConfigError, Problem


def confirm_iterations(planned: int) -> int:
    """Ask on standard error whether to train `planned` iterations; return how many. The answer may come through a pipe.

    `n` ends the command with `typer.Exit`. Raises `ConfigError` at the end of the input.
    """
    while True:
        console.note(f"Accept {counted(planned, 'iteration')}? [Y/n/number] ", end="")
        line = sys.stdin.readline()
        if not line:
            console.note("")
            hint = "Answer on standard input (Y, n or a number), or leave --no_autoaccept_iters out."
            raise ConfigError([Problem("--no_autoaccept_iters", "the input ended before the iterations were accepted", hint)])
        answer = line.strip().lower()
        if answer in ("", "y", "yes"):
            return planned
        if answer in ("n", "no"):
            console.note("Not accepted; nothing was started.")
            raise typer.Exit(0)
        if answer.isdecimal() and int(answer) > 0:
            return int(answer)
        console.note("Please answer Y, n, or a number of iterations.")
