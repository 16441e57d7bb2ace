"""An engine process that is told its work as lines of JSON on standard input, and answers as lines on standard output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from medsft.core.run.launch import EngineError, engine_environment, last_message
from medsft.core.run.processes import PARENT_VARIABLE

_END_SECONDS = 5.0


class EngineLines:
    """A running `python -m medsft.core.engine.commands.MODULE`. It ends with this process, or with `close`."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        source: Path | None = None,
        processes: int = 1,
        device: int | None = None,
    ) -> None:
        """Start it. It reads the lines of the file `source`, or those that are sent.

        `processes` share the cores; `device` is the number of the GPU that it sees, None for all of them.
        """
        self._module = module
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        environment = {**engine_environment(processes), PARENT_VARIABLE: str(os.getpid())}
        if device is not None:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
            environment["CUDA_VISIBLE_DEVICES"] = visible[device] if device < len(visible) and visible[device] else str(device)
        command = [sys.executable, "-m", f"medsft.core.engine.commands.{module}", *arguments]
        with source.open("rb") if source else nullcontext(subprocess.PIPE) as stdin:
            self._process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=environment,
                start_new_session=True,  # a Ctrl-C of the terminal is this process's to deal with
            )

    def send(self, record: Mapping[str, Any]) -> None:
        """Tell it a line. Raises `EngineError` when it has ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(record).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self._error() from None

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield what it writes until it ends. Raises `EngineError` when it fails."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            yield json.loads(line)
        if self._process.wait():
            raise self._error()

    def read(self) -> dict[str, Any]:
        """Return the next line that it writes. Raises `EngineError` when it ends instead."""
        for line in self.lines():
            return line
        raise self._error()

    def close(self) -> None:
        """End it, if it has not ended."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with suppress(OSError):
                    stream.close()

    def _error(self) -> EngineError:
        returncode = self._process.wait()
        self._errors.seek(0)
        said = last_message(self._errors.read().decode("utf-8", "replace"))
        return EngineError(said or f"{self._module} ended with {returncode}", returncode)
