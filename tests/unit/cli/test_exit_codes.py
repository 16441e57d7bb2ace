"""1 means "this run is finished" and nothing else, whatever ends a process."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer

from medsft.cli.guard import Guard, _never_one
from medsft.core.engine.commands.entry_point import run_process
from medsft.core.run.launch import EngineError
from medsft.errors import AlreadyFinishedError, ExitCode


class Panic(BaseException):
    """As pyo3's PanicException: none of Python's exceptions for people."""


ENDS = [
    (Panic("inside"), ExitCode.TRAINING),
    (SystemExit(1), ExitCode.TRAINING),
    (SystemExit("words"), ExitCode.TRAINING),
    (SystemExit(2), ExitCode.USAGE),
    (SystemExit(0), ExitCode.DONE),
    (RuntimeError("inside"), ExitCode.TRAINING),
    (AlreadyFinishedError("it is"), ExitCode.ALREADY_FINISHED),
]


@pytest.mark.parametrize(("error", "code"), ENDS, ids=lambda value: repr(value))
def test_an_engine_process(error, code, monkeypatch):
    def main(_):
        raise error

    monkeypatch.setattr(sys, "argv", ["x"])
    assert run_process(main) == code


@pytest.mark.parametrize(
    ("error", "code"), [*ENDS, (typer.Abort(), 2), (EOFError(), 2), (BrokenPipeError(), 0), (KeyboardInterrupt(), 130)]
)
def test_a_command(error, code):
    app = typer.Typer(cls=Guard)

    @app.callback(invoke_without_command=True)
    def top() -> None:
        raise error

    stdout = sys.stdout
    try:
        with pytest.raises(SystemExit) as ended:
            app([], prog_name="medsft")
    finally:
        sys.stdout = stdout
    assert int(ended.value.code or 0) == code


def test_python_s_own_end_of_an_engine_process_is_a_failure():
    assert EngineError("no module", 1).exit_code == ExitCode.TRAINING


def test_a_reader_that_leaves(tmp_path):
    """A table that Rich draws into a closed pipe."""
    code = "import os, sys; r, w = os.pipe(); os.close(r); os.dup2(w, 1); from medsft.cli import main; main()"
    command = [sys.executable, "-c", code, "runs", "--save_checkpoint_dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["sft", "--help"]])
def test_a_reader_of_help_that_leaves(arguments):
    code = "import os, sys; r, w = os.pipe(); os.close(r); os.dup2(w, 1); from medsft.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_table_whose_reader_leaves_midway():
    """Rich ends the process with 1 then."""

    def as_rich_does():
        try:
            raise BrokenPipeError
        except BrokenPipeError:
            raise SystemExit(1)  # noqa: B904

    with pytest.raises(typer.Exit) as end, _never_one():
        as_rich_does()
    assert end.value.exit_code == ExitCode.DONE
