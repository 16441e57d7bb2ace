"""A `medsft serve` of its own for tests."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import psutil

from medsft.core.run.events import EventWriter
from medsft.core.run.rundir import RunDir

SECONDS = 90.0
"""Longer than anything takes on a busy machine."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_run(folder: Path, name: str) -> RunDir:
    run = RunDir(folder / "runs" / name)
    run.create("{}")
    writer = EventWriter(run.events_path)
    writer.write("run_started", iteration=0, total=10)
    writer.write("step", iteration=3, total=10, loss=1.5)
    writer.close()
    return run


class Served:
    """A running `medsft serve` and its address."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.process = start(folder, self.port)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        self.token = self.address.rstrip("/").rpartition("/")[2]

    def screens(self) -> list[psutil.Process]:
        """The processes behind the open pages, but for the shells that started them."""
        return psutil.Process(self.process.pid).children(recursive=True)


def start(folder: Path, port: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "medsft", "serve", "--port", str(port)]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
