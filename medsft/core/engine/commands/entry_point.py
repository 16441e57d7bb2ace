"""How an engine process ends: its result on standard output, one message on standard error, and the exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from medsft.core.disk import trouble
from medsft.core.run.processes import PARENT_VARIABLE, end_with_parent
from medsft.errors import ExitCode, MedsftError


def run_process(main: Callable[[list[str]], None]) -> int:
    """Call `main` with the process's arguments and return the exit code; an error's message is the last thing on stderr.

    Nothing ends with 1, which says that a run is finished: not Python's own exceptions, not those that are none of its
    `Exception`s (torch's of a checkpoint, a panic in Rust), and not a library that ends the process.
    """
    if parent := os.environ.pop(PARENT_VARIABLE, None):  # the processes that this one starts have another parent
        end_with_parent(int(parent), patience=5.0)
    try:
        main(sys.argv[1:])
    except MedsftError as error:
        print(error, file=sys.stderr)  # noqa: T201 - read by the parent process
        return int(error.exit_code)
    except SystemExit as error:
        if error.code in (None, 0):
            return int(ExitCode.DONE)
        return int(ExitCode.USAGE if error.code == 2 else ExitCode.TRAINING)  # 2 is argparse's
    except BaseException as error:
        found = trouble(error, Path.cwd())
        if found is not None:
            print(MedsftError(found.message, hint=found.hint), file=sys.stderr)  # noqa: T201 - read by the parent process
            return int(ExitCode.TRAINING)
        traceback.print_exc()
        print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201 - read by the parent process
        return int(ExitCode.TRAINING)
    return int(ExitCode.DONE)


def end_rank(code: int) -> NoReturn:
    """End a process that was one of several ranks without taking Python down in order.

    Threads of gloo may still let go of tensors by then; where Python is half gone, that aborts a rank whose work is done.
    """
    with suppress(OSError):  # logs on a full disk
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
