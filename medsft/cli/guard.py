"""Between the commands and a person: arguments are normalized on the way in, errors become messages on the way out."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from medsft.cli import console
from medsft.cli.argv import normalize, unknown_flags
from medsft.core.disk import trouble
from medsft.core.other_tools import did_you_mean, suggestion
from medsft.core.printable import printable
from medsft.errors import ConfigError, DiskError, ExitCode, MedsftError, Problem

_OF_A_PATH = frozenset(
    {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG}
    | {errno.EROFS, errno.ENOTEMPTY, errno.EXDEV, errno.ESTALE}
)
"""What the system says of a path that is not what it should be: a person's to mend, not ours."""


class Group(TyperGroup):
    """Commands whose help names no type for options that take no value."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the group's own options."""
        return _without_types(super().get_params(ctx))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command of the group."""
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            _without_types(command.get_params(ctx))
        return command


def _without_types(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""  # typer writes <bool>, as if something had to follow
    return parameters


class Guard(Group):
    """The top group of the command line. Every call of it, from a shell or a test, goes through `main`."""

    def main(self, args: Sequence[str] | None = None, **extra: Any) -> Any:  # type: ignore[override]
        """Run the command of these arguments (default: the process's) and end with `SystemExit` and its exit code."""
        arguments = normalize(sys.argv[1:] if args is None else args)
        debug = "--debug" in arguments
        try:
            _refuse_unknown_flags(self, [argument for argument in arguments if argument != "--debug"])
            return super().main([argument for argument in arguments if argument != "--debug"], **extra)
        except MedsftError as error:
            _explain(error, debug)
            sys.exit(error.exit_code)
        except OSError as error:
            if error.errno not in _OF_A_PATH and (found := trouble(error, Path.cwd())) is not None:
                _explain(DiskError(found.message, hint=found.hint, exit_code=ExitCode.USAGE), debug)
                sys.exit(ExitCode.USAGE)
            if error.filename is None or error.errno not in _OF_A_PATH:
                _report_bug(error, debug)
                sys.exit(ExitCode.TRAINING)
            # Whoever opens a file that a person named says what it is for; this is for those that nobody thinks of.
            _explain(ConfigError([Problem(str(error.filename), error.strerror or type(error).__name__)]), debug)
            sys.exit(ExitCode.USAGE)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # a panic in Rust is no Exception; Python would end with 1, which means "finished"
            _report_bug(error, debug)
            sys.exit(ExitCode.TRAINING)

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:
        """Read the top group's own options."""
        with _usage_errors_in_our_words(), _never_one():  # the help of all commands is shown here
            return super().make_context(info_name, args, *rest, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Read the options of the command, and run it."""
        with _usage_errors_in_our_words(), _never_one():
            return super().invoke(ctx)


@contextmanager
def _never_one() -> Iterator[None]:
    """Typer and libraries end with 1 where output goes nowhere or a question gets no answer. Here 1 means "finished"."""
    try:
        yield
    except BrokenPipeError:
        raise _seen_enough() from None
    except (typer.Abort, EOFError):
        console.note("medsft: no answer, so nothing was done. --yes answers every question.")
        raise typer.Exit(ExitCode.USAGE) from None
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # Rich ends so, tables and help pages too
            raise typer.Exit(ExitCode.DONE) from None
        if error.code in (None, 0):
            raise
        if isinstance(error.__context__, BrokenPipeError):  # Rich's answer to one
            raise _seen_enough() from None
        raise typer.Exit(error.code if isinstance(error.code, int) and error.code > 1 else ExitCode.TRAINING) from None


def _seen_enough() -> typer.Exit:
    """Return the end of a command whose reader is gone: it has seen what it wanted."""
    sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - for what Python still writes at its end
    return typer.Exit(ExitCode.DONE)


@contextmanager
def _usage_errors_in_our_words() -> Iterator[None]:
    """Typer shows what is wrong with a command line in a box of its own, with the words that were typed, or that a `*` found.

    Here it is one message, as every other error. Typer's classes are private: what they have in common is told by name.
    """
    try:
        yield
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError" or not hasattr(error, "format_message"):
            raise
        message = printable(str(error.format_message())).rstrip(".")
        context = getattr(error, "ctx", None)
        if context is None:  # an option without its value
            raise ConfigError([Problem("command line", message)]) from None
        hint = context.get_usage()
        if ".json" in message and any("--data" in parameter.opts for parameter in context.command.params):
            hint = "Files of rows follow a flag: --data FILE, and --val FILE for those to validate on."
        raise ConfigError([Problem(context.command_path.removeprefix("medsft "), message, hint)]) from None


def _refuse_unknown_flags(group: Any, arguments: Sequence[str]) -> None:
    """Raise `ConfigError` with the command, or every flag of it, that does not exist, and what was meant by it."""
    command, words = group, list(arguments)
    while words and not words[0].startswith("-") and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    commands = getattr(command, "commands", {})
    if commands and words and not words[0].startswith("-"):
        hint = did_you_mean(words[0], commands) or "`medsft --help` lists the commands."
        raise ConfigError([Problem(words[0], f"`{command.name or 'medsft'}` has no such command", hint)])
    takes_value = {
        option: not getattr(parameter, "is_flag", False)
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
        if option.startswith("-")
    }
    known = [option.removeprefix("--") for option in takes_value if option.startswith("--")]
    problems = [
        Problem(
            flag,
            f"`{command.name}` has no such flag",
            _kept_by_a_run(flag, command, commands_of=group) or suggestion(flag.removeprefix("--"), known, mark="--"),
        )
        for flag in unknown_flags(words, takes_value)
    ]
    if problems:
        raise ConfigError(problems)


def _kept_by_a_run(flag: str, command: Any, *, commands_of: Any) -> str:
    """Return what to do about a flag of `sft` that is given to `resume`; nothing for others."""
    from medsft.core.config.run_config import NOT_PART_OF_A_RUN

    start = getattr(commands_of, "commands", {}).get("sft")
    name = flag.removeprefix("--").replace("-", "_")
    if command.name != "resume" or start is None or not any(f"--{name}" in parameter.opts for parameter in start.params):
        return ""
    if name in NOT_PART_OF_A_RUN:
        return "Type the `medsft sft` command that started the run once more, with this flag: it goes on."
    return "A run goes on with what it was started with. Another value is another run: medsft sft ... --id NAME"


def _explain(error: MedsftError, debug: bool) -> None:
    if debug:
        console.note(traceback.format_exc(), end="")
    several = isinstance(error, ConfigError) and len(error.problems) > 1
    console.note(f"medsft: several things are wrong:\n{error}" if several else f"medsft: {error}")


def _report_bug(error: BaseException, debug: bool) -> None:
    """Name the kind of error and the line it came from; its text could quote a record, so only --debug shows it."""
    if debug:
        console.note(traceback.format_exc(), end="")
        return
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
    console.note(f"medsft: this is a bug in medsft: {where}. Run the command again with --debug for the details.")
