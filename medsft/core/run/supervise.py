"""Watches over one node's ranks: `python -m medsft.core.run.supervise RUN_DIR`, in a session of its own, without torch.

It starts torchrun, gives signs of life, turns SIGTERM into a graceful stop, exports the finished model, and writes down how
the run ended when the ranks no longer can.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medsft.core.planning.plan import RunPlan
from medsft.core.run.events import EventWriter
from medsft.core.run.launch import Launch, engine_environment, read_launch, run_engine
from medsft.core.run.rundir import HEARTBEAT_SECONDS, RunDir
from medsft.errors import ExitCode, MedsftError

STOP_SECONDS = 600
"""How long ranks may take to save after a SIGTERM before torchrun kills them."""
_START_MARK = "medsft starts the ranks"
"""Parts the starts of a run in the launcher's log."""
_SECONDARY = re.compile(r"[Cc]onnection (closed|reset|refused)|Broken pipe|[Tt]imed out|NCCL|Gloo|gloo")
"""What the other ranks say when one has died: never the cause."""


def main(run_dir: str) -> int:
    """Run the plan of `run_dir` to its end, a stop, or a failure, and return the exit code."""
    run = RunDir(Path(run_dir))
    signal.signal(signal.SIGTERM, lambda *_: run.request("stop"))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ended = threading.Event()
    threading.Thread(target=_beat, args=(run, ended), daemon=True).start()
    try:
        return _supervise(run)
    except MedsftError as error:
        return _fail(run, error.message, error.hint, int(error.exit_code))
    except Exception as error:
        return _fail(run, f"{type(error).__name__}: {error}", "logs/supervisor.log has more.", int(ExitCode.LAUNCH))
    finally:
        ended.set()


def _beat(run: RunDir, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT_SECONDS):
        run.beat()


def _supervise(run: RunDir) -> int:
    plan = RunPlan.from_json(run.read_plan(), where=str(run.plan_path))
    if run.latest_checkpoint() != plan.num_iterations:
        code = _train(run, read_launch(run))
        if code != 0:
            reason, remedy, exit_code = _first_error(run, code)
            return _fail(run, reason, remedy, exit_code)
    if run.latest_checkpoint() != plan.num_iterations:
        return int(ExitCode.DONE)  # stopped on request: the reporting rank said so
    return _finish(run, plan)


def _train(run: RunDir, launch: Launch) -> int:
    command = torchrun_command(run, launch)
    with (run.logs / "launcher.log").open("ab") as log:
        log.write(f"{_START_MARK}\n".encode())
        log.flush()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=engine_environment(launch.nproc_per_node),
        )
        return process.wait()


def torchrun_command(run: RunDir, launch: Launch) -> list[str]:
    """Return the command that starts this node's ranks."""
    if launch.nodes == 1:
        meeting = ["--standalone"]
    else:
        meeting = [f"--nnodes={launch.nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={launch.addr}:{launch.port}"]
    return [
        *(sys.executable, "-m", "torch.distributed.run"),
        *meeting,
        f"--nproc-per-node={launch.nproc_per_node}",
        f"--max-restarts={launch.max_restarts}",
        f"--log-dir={run.logs}",
        "--redirects=3",
        f"--shutdown-timeout={STOP_SECONDS}",
        *("-m", "medsft.core.engine.worker", str(run.path)),
    ]


def _finish(run: RunDir, plan: RunPlan) -> int:
    events = EventWriter(run.events_path)
    events.write("phase", name="exporting")
    run_engine("export", [str(run.path), "--to", plan.export_dir])
    events.write("finished", iteration=plan.num_iterations, export=plan.export_dir)
    events.close()
    run.write_status("Training done")
    return int(ExitCode.DONE)


def _first_error(run: RunDir, code: int) -> tuple[str, str, int]:
    """Return (reason, remedy, exit code) of the rank that failed first, not of those that only lost its company."""
    records: list[dict[str, Any]] = []
    for path in run.control.glob("error_rank_*.json"):
        try:
            records.append(json.loads(path.read_text()))
        except ValueError:
            continue
    causes = [r for r in records if r["expected"] or not _SECONDARY.search(r["reason"])]
    killed = _killed_ranks(run)
    if causes:
        first = min(causes, key=lambda r: (not r["expected"], r["time"]))
        return str(first["reason"]), str(first["remedy"]), int(first["exit_code"])
    resume = f"Go on from the last checkpoint: medsft resume {run.path}"
    if killed:
        rank, number = killed[0]
        return (
            f"Rank {rank} was killed by signal {number}"
            + (" (SIGKILL: by a person, or by the system when memory ran out)." if number == signal.SIGKILL else "."),
            resume,
            int(ExitCode.TRAINING),
        )
    if records:
        first = min(records, key=lambda r: r["time"])
        return f"Rank {first['rank']}: {first['reason']}", resume, int(ExitCode.TRAINING)
    return f"The launcher ended with code {code}.", f"{run.logs / 'launcher.log'} says why. {resume}", int(ExitCode.LAUNCH)


def _killed_ranks(run: RunDir) -> list[tuple[int, int]]:
    """Return (rank, signal) of the ranks that torchrun reports as killed in its latest start, the first to end in front."""
    try:
        text = (run.logs / "launcher.log").read_text(errors="replace").rpartition(_START_MARK)[2]
    except FileNotFoundError:
        return []
    failures, _, root_cause = text.partition("Root Cause")
    found = re.findall(r"rank\s+: (\d+) [^\[]*?exitcode\s+: -(\d+)", root_cause + failures)
    return [(int(rank), int(number)) for rank, number in found if int(number) != signal.SIGTERM]


def _fail(run: RunDir, reason: str, remedy: str, exit_code: int) -> int:
    events = EventWriter(run.events_path)
    events.write("failed", reason=reason, remedy=remedy, exit_code=exit_code)
    events.close()
    return exit_code


def run_as_main(arguments: Sequence[str]) -> int:
    """Entry point of the process."""
    return main(arguments[0])


if __name__ == "__main__":
    sys.exit(run_as_main(sys.argv[1:]))
