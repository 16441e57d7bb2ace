"""`python -m bench gpu`: run the parts of the check one after the other and write what they found as JSON and as tables.

Each part is a process of its own: an error of the driver, or a part that hangs, ends that part and no other.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.gpu import report
from bench.gpu.part import DONE, FAILED
from bench.table import say
from medsft.core.devices import find_devices
from medsft.core.files import write_atomically
from medsft.core.run.launch import engine_environment

BUDGET_SECONDS = 460
"""Eight minutes, less what starting a machine's first process takes."""
NO_TIME, TIMED_OUT = "not run: no time was left", "ended: its time was over"
_PATIENCE_SECONDS = 10
"""Until a part that was told to end is killed."""
_LAST_LINES = 12
"""Of the log of a part that failed, to show."""
_PACKAGES = (
    *("medsft", "torch", "triton", "transformers", "tokenizers", "numpy", "liger-kernel", "bitsandbytes", "torchao", "peft"),
    "accelerate",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of the check."""

    name: str
    module: str
    seconds: int
    """That it takes on an H100, about; after twice as many it is ended."""
    right: bool
    """Whether it says if medsft is right, and not how fast it is: the check fails where such a part does."""


PARTS = (
    Part(name="machine", module="machine", seconds=25, right=True),
    Part(name="attention", module="attention", seconds=40, right=True),
    Part(name="loss_and_norms", module="fused", seconds=20, right=True),
    Part(name="runs", module="runs", seconds=110, right=True),
    Part(name="adapters", module="adapters", seconds=70, right=True),
    Part(name="perf", module="perf", seconds=110, right=False),
    Part(name="peers", module="peers", seconds=90, right=False),
    Part(name="several_gpus", module="layouts", seconds=100, right=True),
)
"""In the order of their worth."""


def main(arguments: Sequence[str]) -> int:
    """Run the check. Return 1 where something is wrong, 0 where all that was run is right."""
    options = _parser().parse_args(arguments)
    output: Path = options.output
    output.mkdir(parents=True, exist_ok=True)
    began, ends = time.time(), time.time() + options.budget
    asked = [part for part in PARTS if not options.only or part.name in options.only]
    results: dict[str, Any] = {"facts": _facts(tiny=options.tiny), "parts": {}}
    say(f"{results['facts']['device']}: {', '.join(part.name for part in asked)}; at most {options.budget:.0f} s")
    for part in asked:
        results["parts"][part.name] = _run(part, output, ends, tiny=options.tiny)
        results["seconds"] = round(time.time() - began, 1)
        write_atomically(output / "gpu.json", json.dumps(results, indent=1) + "\n")
        write_atomically(output / "gpu.md", _tables(results))
    wrong = [line for part in asked for line in faults(part, results["parts"][part.name])]
    say(f"\n{_tables(results)}")
    say(f"All figures: {output / 'gpu.json'}; the tables: {output / 'gpu.md'}; {results['seconds']:.0f} s")
    say("\n".join(["WRONG:", *wrong]) if wrong else "All that was run is right.")
    return 1 if wrong else 0


def _tables(results: dict[str, Any]) -> str:
    """Return the tables; of figures that these do not understand, why, so that no part is lost for that."""
    try:
        return report.markdown(results)
    except (KeyError, TypeError, ValueError) as error:
        return f"No tables: {type(error).__name__}: {error}. The figures are in gpu.json.\n"


def faults(part: Part, result: dict[str, Any]) -> list[str]:
    """Return what is wrong in the result of a part, a line each."""
    lines = [f"  {part.name}: {check['what']}: {check['found']}" for check in result["checks"] if not check["passed"]]
    ended = result["status"] in (FAILED, TIMED_OUT)
    return [*lines, f"  {part.name}: {result['status']}; see {result['log']}"] if ended and part.right else lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench gpu", description="Check medsft on a GPU: is it right, and how fast."
    )
    parser.add_argument("--tiny", action="store_true", help="sizes of tests; runs on a CPU, too")
    names = [part.name for part in PARTS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="PART", help=f"some of {', '.join(names)}")
    parser.add_argument("--budget", type=float, default=BUDGET_SECONDS, metavar="SECONDS", help="default: %(default)s")
    default = Path("bench/results/gpu")
    parser.add_argument("--output", type=Path, default=default, metavar="DIR", help=f"default: {default}")
    return parser


def _facts(*, tiny: bool) -> dict[str, Any]:
    devices = find_devices()
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "device": devices.name,
        "kind": devices.kind,
        "devices": devices.count,
        "memory_gb": round(devices.memory_bytes / 1e9, 1),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "tiny": tiny,
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _run(part: Part, output: Path, ends: float, *, tiny: bool) -> dict[str, Any]:
    """Run one part in a process of its own and return what it found."""
    left = ends - time.time()
    if left < (1 if tiny else part.seconds / 2):
        say(f"{part.name}: {NO_TIME}")
        return {"status": NO_TIME, "checks": [], "figures": {}, "notes": [], "seconds": 0.0, "log": ""}
    until = ends if tiny else min(ends, time.time() + 2 * part.seconds)
    parts, work = output / "parts", output / "work"
    parts.mkdir(exist_ok=True)
    work.mkdir(exist_ok=True)
    path, log = parts / f"{part.name}.json", parts / f"{part.name}.log"
    path.unlink(missing_ok=True)
    setup = {"output": str(parts.absolute()), "work": str(work.absolute()), "tiny": tiny, "ends": until}
    say(f"{part.name} ...")
    with log.open("wb") as file:
        command = [sys.executable, "-m", "bench.gpu.part", part.module, json.dumps(setup), str(path.absolute())]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=_environment(), start_new_session=True
        )
        status = _wait(process, until)
    shutil.rmtree(work, ignore_errors=True)
    found: dict[str, Any] = {"checks": [], "figures": {}, "notes": [], "seconds": 0.0}
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
    found = {**found, "status": status, "log": str(log)}  # a process that was killed could not say so itself
    write_atomically(path, json.dumps(found, indent=1) + "\n")
    if status != DONE:
        say("\n".join(f"  | {line}" for line in log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]))
    right = sum(check["passed"] for check in found["checks"])
    say(f"{part.name}: {status}, {right} of {len(found['checks'])} checks right, {found['seconds']:.0f} s")
    return found


def _environment() -> dict[str, str]:
    """Return the environment of a rank, with this checkout in front, so that its medsft is what is checked."""
    environment = engine_environment(1)
    if "OMP_NUM_THREADS" not in os.environ:
        del environment["OMP_NUM_THREADS"]  # parts start several ranks, which divide the cores among them
    root = str(Path(__file__).parents[2])
    return environment | {"PYTHONPATH": os.pathsep.join([root, *filter(None, [environment.get("PYTHONPATH")])])}


def _wait(process: subprocess.Popen[bytes], until: float) -> str:
    """Wait for a part and return how it ended. It is told to end when its time is over, and killed when it does not."""
    try:
        code = process.wait(timeout=max(0.1, until - time.time()))
        return DONE if code == 0 else FAILED
    except subprocess.TimeoutExpired:
        return TIMED_OUT
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=_PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it has started and not ended
        process.wait()
