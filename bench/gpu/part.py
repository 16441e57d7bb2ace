"""What a part of the check gets, and what it gives back: written after each finding, so that a part that is killed loses none.

A part is a module with a function `measure(setup, found)`.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import math
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from bench.table import say
from medsft.core.files import write_atomically

DONE, FAILED, RUNNING = "done", "failed", "running"
_LAST_SECONDS = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Where a part works, and until when."""

    output: Path
    """What is found goes there."""
    work: Path
    """For models, rows and runs."""
    tiny: bool
    """Sizes of tests, on whatever device there is."""
    ends: float
    """Unix time at which the part is killed."""

    @property
    def left(self) -> float:
        """Return the seconds until the part is killed."""
        return self.ends - time.time()


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Something that is right or wrong."""

    what: str
    passed: bool
    found: str
    limit: str


@dataclass(slots=True)
class Findings:
    """What a part has found so far."""

    path: Path
    status: str = RUNNING
    checks: list[Check] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What was not run, and why."""
    seconds: float = 0.0

    def at_most(self, what: str, found: float, limit: float) -> None:
        """Check that a number is not above a limit; one that is not a number is."""
        self._add(Check(what=what, passed=found <= limit, found=f"{found:.2g}", limit=f"at most {limit:.3g}"))

    def holds(self, what: str, passed: bool, found: object) -> None:
        """Check that something holds; `found` says what was seen."""
        self._add(Check(what=what, passed=passed, found=str(found), limit=""))

    def figure(self, name: str, value: Any) -> None:
        """Keep a figure, or several under one name."""
        self.figures[name] = value
        self.save()

    def note(self, text: str) -> None:
        """Say what was not run."""
        self.notes.append(text)
        self.save()

    @contextmanager
    def attempt(self, what: str, *, right: bool) -> Iterator[None]:
        """Let what is inside fail without ending the part: as a check that fails where `right`, else as a note."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            first, *_ = [*str(error).splitlines(), ""]
            told = f"{type(error).__name__}: {first}"
            if right:
                self.holds(what, False, told)
            else:
                self.note(f"{what}: {told}")

    def save(self) -> None:
        """Write what is found so far."""
        write_atomically(self.path, json.dumps(_finite(asdict(self) | {"path": self.path.name}), indent=1) + "\n")

    def _add(self, check: Check) -> None:
        self.checks.append(check)
        say(f"  {'right' if check.passed else 'WRONG'}: {check.what}: {check.found} {check.limit and f'({check.limit})'}")
        self.save()


def _finite(value: Any) -> Any:
    """Return the value with numbers that JSON has no word for as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value


def _end(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)  # so that a part ends the processes that it has started


def main(module: str, setup_json: str, path: str) -> int:
    """Run one part in this process; its exit code is 0 unless it ended by an exception of its own."""
    signal.signal(signal.SIGTERM, _end)
    raw = json.loads(setup_json)
    setup = Setup(output=Path(raw["output"]), work=Path(raw["work"]), tiny=raw["tiny"], ends=raw["ends"])
    found, began = Findings(Path(path)), time.time()
    faulthandler.dump_traceback_later(max(1.0, setup.left - _LAST_SECONDS))  # the log of a part that hangs says where
    found.save()
    try:
        importlib.import_module(f"bench.gpu.{module}").measure(setup, found)
        found.status = DONE
    except Exception as error:
        traceback.print_exc()
        found.note(f"{type(error).__name__}: {error}")
        found.status = FAILED
    finally:
        faulthandler.cancel_dump_traceback_later()
        found.seconds = round(time.time() - began, 1)
        found.save()
    return 0 if found.status == DONE else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
