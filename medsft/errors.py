"""The errors a person can meet. Each is one message: what is wrong, where, and what to do.

Only these reach a user; anything else is a bug, and shows a traceback with ``--debug``. This module imports
nothing of medsft.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NoReturn


class ExitCode(IntEnum):
    """What the `medsft` command returns to the shell."""

    DONE = 0
    """Finished, or stopped on request with a checkpoint."""
    ALREADY_FINISHED = 1
    """This very run has been trained to its end before."""
    USAGE = 2
    """A flag, a configuration file or an entry of medsft.toml is wrong."""
    DATA = 3
    """The files of rows or the tokenized set are wrong."""
    MISMATCH = 4
    """A plan, a checkpoint or a base model is not the one that belongs here."""
    LAUNCH = 5
    """Processes could not be started, or a node did not come or died."""
    TRAINING = 6
    """Training failed: a loss that is not finite, out of memory, a dead rank, a full disk."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with what a person asked for."""

    where: str
    """The flag as it is typed (``--loss_mask``), or ``file:line``."""
    message: str
    hint: str = ""
    """What to do about it."""

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n    {self.hint}" if self.hint else text


@dataclass(frozen=True, slots=True)
class Failure:
    """What has ended a process, as others are told of it: in a `failed` event, a file of the run, a message between nodes."""

    reason: str
    remedy: str = ""
    exit_code: ExitCode = ExitCode.TRAINING

    def to_json(self) -> dict[str, Any]:
        """Return the fields under their names, for JSON."""
        return {"reason": self.reason, "remedy": self.remedy, "exit_code": int(self.exit_code)}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Failure:
        """Return the failure of a record that `to_json` made, possibly among other fields; what it lacks has its default."""
        code = next((code for code in ExitCode if code == raw.get("exit_code")), ExitCode.TRAINING)
        return cls(str(raw.get("reason") or ""), str(raw.get("remedy") or ""), code)

    def raise_(self) -> NoReturn:
        """Raise the failure in this process, as `ReportedError`."""
        raise ReportedError(self)


class MedsftError(Exception):
    """Base of all errors for people. ``str(error)`` is the whole message, without record text."""

    exit_code = ExitCode.TRAINING

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(f"{message}\n    {hint}" if hint else message)
        self.message = message
        self.hint = hint

    @property
    def failure(self) -> Failure:
        """What to tell other processes of this error."""
        return Failure(self.message, self.hint, self.exit_code)


class ConfigError(MedsftError):
    """Everything that is wrong with a configuration, at once."""

    exit_code = ExitCode.USAGE

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class DataError(MedsftError):
    """Input rows or a tokenized set that cannot be used."""

    exit_code = ExitCode.DATA


class MismatchError(MedsftError):
    """A plan, checkpoint or base model that is not the one it has to be, or that is damaged."""

    exit_code = ExitCode.MISMATCH


class AlreadyFinishedError(MedsftError):
    """The run that was asked for has been trained to its end."""

    exit_code = ExitCode.ALREADY_FINISHED


class LaunchError(MedsftError):
    """Processes or nodes that could not be started or reached."""

    exit_code = ExitCode.LAUNCH


class TrainingError(MedsftError):
    """Training cannot go on."""

    exit_code = ExitCode.TRAINING


class DiskError(MedsftError):
    """A disk that does not take what is to be written: full, over quota, read-only, forbidden, failing."""

    def __init__(self, message: str, *, hint: str = "", exit_code: ExitCode) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


class ReportedError(MedsftError):
    """A failure of another process or another node, raised in this one."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason, hint=failure.remedy)
        self.exit_code = failure.exit_code
