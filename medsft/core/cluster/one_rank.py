"""Starts the rank of a run that has only one: `python -m medsft.core.cluster.one_rank RUN_DIR MAX_RESTARTS`.

torchrun would import torch before the rank does so again. Apart from that this is like it, for whoever reads the logs and for
whoever ends one of the processes: logs/ID/attempt_N/0/stdout.log and stderr.log, a report of the signal that has ended the rank
in the words that `causes` reads, SIGTERM passed on, the rank ended with its launcher.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import uuid
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType

from medsft.core.run.causes import TERMINATED
from medsft.core.run.launch import STOP_SECONDS, WORKER
from medsft.core.run.processes import PARENT_VARIABLE, die_with
from medsft.core.run.rundir import RunDir

_RANK = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}


class Launcher:
    """Runs the rank until it ends as it should, was asked to, or has failed more often than it is restarted."""

    def __init__(self, run_dir: Path, max_restarts: int, module: str = WORKER) -> None:
        self.module = module
        self.run = RunDir(run_dir)
        self.max_restarts = max_restarts
        self.logs = self.run.logs / uuid.uuid4().hex
        self.stopped = False
        self.process: subprocess.Popen[bytes] | None = None

    def main(self) -> int:
        """Return 0 when the rank has done its work or saved it on request, 1 when it failed."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        for attempt in range(self.max_restarts + 1):
            code = self._run_once(attempt)
            if code == 0 or self.stopped:
                break
            _say(f"Attempt {attempt}: rank 0 has failed with code {code}.")
        if code < 0:
            _say(f"Root Cause:\n  rank      : 0 (local_rank: 0)\n  exitcode  : {code}")
        return int(code != 0)

    def _run_once(self, attempt: int) -> int:
        """Run the rank once, and return its exit code, negative for the signal that ended it."""
        folder = self.logs / f"attempt_{attempt}" / "0"
        folder.mkdir(parents=True)
        with (folder / "stdout.log").open("wb") as out, (folder / "stderr.log").open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-u", "-m", self.module, str(self.run.path)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                env={**os.environ, **_RANK, PARENT_VARIABLE: str(os.getpid())},
                preexec_fn=partial(die_with, os.getpid()),
            )
        if self.stopped:  # before there was a rank that could be told
            self.process.terminate()
        return self.process.wait()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Tell the rank to save and end, and give it `STOP_SECONDS` for that."""
        if self.stopped:
            return
        self.stopped = True
        if number == signal.SIGTERM:
            _say(TERMINATED)
        if self.process is not None:
            self.process.terminate()
        patience = threading.Timer(STOP_SECONDS, self._kill)
        patience.daemon = True
        patience.start()

    def _kill(self) -> None:
        if self.process is not None:
            self.process.kill()


def _say(text: str) -> None:
    """Write to the log, also from the handler of a signal."""
    with suppress(OSError):  # the disk is full
        os.write(sys.stdout.fileno(), f"{text}\n".encode())


if __name__ == "__main__":
    sys.exit(Launcher(Path(sys.argv[1]), int(sys.argv[2])).main())
