"""Asks the app for another screen. The app opens it: no screen imports another."""

from __future__ import annotations

from pathlib import Path

from textual.message import Message

from medsft.core.run.rundir import RunDir


class ShowMonitor(Message):
    """Show a run on top of this screen."""

    def __init__(self, run: RunDir) -> None:
        super().__init__()
        self.run = run


class ShowRuns(Message):
    """Show the runs of a folder in place of this screen."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
