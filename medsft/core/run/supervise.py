"""Watches over one node's ranks: `python -m medsft.core.run.supervise RUN_DIR NODE`, in a session of its own, without torch.

It starts torchrun, gives signs of life, turns SIGTERM into a graceful stop, and ends the ranks when another node is lost.
On node 0 it also exports the finished model, and writes down how the run ended when the ranks no longer can.
"""

from __future__ import annotations

import ctypes
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from medsft.core.planning.plan import RunPlan
from medsft.core.run.company import Company
from medsft.core.run.events import EventReader, EventWriter
from medsft.core.run.launch import Launch, engine_environment, node_suffix, read_launch, run_engine
from medsft.core.run.nodes import local_address, network_environment
from medsft.core.run.rundir import HEARTBEAT_SECONDS, RunDir, write_atomically
from medsft.errors import ExitCode, LaunchError, MedsftError

STOP_SECONDS = 600
"""How long ranks may take to save after a SIGTERM before torchrun kills them."""
_SETTLE_SECONDS = 35.0
"""How long all ranks may take to end after the first has failed. Longer than it takes to notice that a node is lost, so that
this is named as the cause, and not the connections that it broke."""
_POLL_SECONDS = 0.2
_START_MARK = "medsft starts the ranks"
"""Parts the starts of a run in a launcher's log."""
_PR_SET_PDEATHSIG = 1
"""Of linux/prctl.h."""
_SECONDARY = re.compile(r"[Cc]onnection (closed|reset|refused)|Broken pipe|[Tt]imed out|NCCL|Gloo|gloo")
"""What the other ranks say when one has died: never the cause."""


def main(run_dir: str, node: int = 0) -> int:
    """Run the plan of `run_dir` to its end, a stop, or a failure, and return the exit code."""
    run = RunDir(Path(run_dir))
    signal.signal(signal.SIGTERM, lambda *_: run.request("stop"))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ended = threading.Event()
    if node == 0:
        threading.Thread(target=_beat, args=(run, ended), daemon=True).start()
    try:
        launch = read_launch(run)
        company = Company(launch, node)
        failure = _attempt(run, launch, company, node)
        if node == 0:
            _close_log(run, failure)
            company.dismiss(failure)
        else:
            _leave_end(run, node, failure)
        company.close()
    finally:
        ended.set()
    return int(failure.exit_code) if failure else int(ExitCode.DONE)


def _beat(run: RunDir, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT_SECONDS):
        run.beat()


def _attempt(run: RunDir, launch: Launch, company: Company, node: int) -> MedsftError | None:
    """Do this node's part, and return what went wrong."""
    try:
        company.meet()
        if node:
            _follow(run, launch, company, node)
        else:
            _lead(run, launch, company)
    except MedsftError as error:
        return error
    except Exception as error:
        return LaunchError(f"{type(error).__name__}: {error}", hint=f"{run.logs}/supervisor{node_suffix(node)}.log has more.")
    return None


def _lead(run: RunDir, launch: Launch, company: Company) -> None:
    """Train and export. Raises what has ended the run."""
    plan = RunPlan.from_json(run.read_plan(), where=str(run.plan_path))
    if run.latest_checkpoint() != plan.num_iterations:
        code = _train(run, launch, company, node=0)
        if code == 0 or not _has_cause(run):
            complete = company.wait(STOP_SECONDS if code == 0 else _SETTLE_SECONDS)
            if code == 0 and not complete:
                raise LaunchError("The ranks of another node do not end.", hint=_how_to_go_on(run))
        code = code or next(filter(None, company.codes.values()), 0)
        if code and not _stopped(run, launch):
            raise _first_error(run, launch, code)
    if run.latest_checkpoint() == plan.num_iterations:  # otherwise it was stopped on request: the reporting rank said so
        _finish(run, plan)


def _follow(run: RunDir, launch: Launch, company: Company, node: int) -> None:
    """Train on a node other than 0, and let node 0 say how the run ended. Raises what has ended it."""
    plan = RunPlan.from_json(run.read_plan(), where=str(run.plan_path))
    trained = run.latest_checkpoint() == plan.num_iterations
    company.report(0 if trained else _train(run, launch, company, node))


def _train(run: RunDir, launch: Launch, company: Company, node: int) -> int:
    """Run this node's ranks and return torchrun's exit code. Raises `LaunchError` when another node is lost meanwhile."""
    command = torchrun_command(run, launch, node)
    # Ranks that are started again must not meet in the store of those that died: torch 2.13 keeps their addresses there.
    environment = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", **engine_environment(launch.nproc_per_node)}
    if launch.addr is not None and launch.nodes > 1:
        environment = {**network_environment(launch.addr), **environment, "MEDSFT_NODE": str(node)}
    with _launcher_log(run, node).open("ab") as log:
        log.write(f"{_START_MARK}\n".encode())
        log.flush()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            preexec_fn=_stop_when_parent_dies,
        )
    try:
        _watch(process, company)
    finally:
        _kill(process)
    return process.wait()


def _stop_when_parent_dies() -> None:
    """Have Linux send SIGTERM to torchrun when this supervisor is killed: its ranks save and end, and nothing runs unseen."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _watch(process: subprocess.Popen[bytes], company: Company) -> None:
    """Return when torchrun has ended, or some time after the ranks of another node have failed. Raises as `Company.watch`."""
    deadline: float | None = None
    while process.poll() is None and (deadline is None or time.monotonic() < deadline):
        if company.watch(_POLL_SECONDS) and deadline is None:
            deadline = time.monotonic() + _SETTLE_SECONDS


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End torchrun and its ranks at once, if they still run: asked nicely, ranks would first wait for the lost ones."""
    if process.poll() is not None:
        return
    launcher = psutil.Process(process.pid)
    launcher.suspend()  # so that it starts no rank while its ranks are counted
    for one in [launcher, *launcher.children(recursive=True)]:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()


def torchrun_command(run: RunDir, launch: Launch, node: int = 0) -> list[str]:
    """Return the command that starts this node's ranks.

    Nodes meet by torchrun's c10d rendezvous: with the static one, a node that restarts its ranks does not make the others
    restart theirs.
    """
    if launch.nodes == 1:
        meeting = ["--standalone"]
    else:
        assert launch.addr is not None
        meeting = [
            f"--nnodes={launch.nodes}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={launch.addr}:{launch.port}",
            f"--rdzv-id={launch.start}",
            f"--rdzv-conf=is_host={str(node == 0).lower()}",  # said, because torchrun guesses it from the host's name
            f"--local-addr={local_address(launch.addr)}",
        ]
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


def _launcher_log(run: RunDir, node: int) -> Path:
    return run.logs / f"launcher{node_suffix(node)}.log"


def _finish(run: RunDir, plan: RunPlan) -> None:
    events = EventWriter(run.events_path)
    events.write("phase", name="exporting")
    run_engine("export", [str(run.path), "--to", plan.export_dir])
    events.write("finished", iteration=plan.num_iterations, export=plan.export_dir)
    events.close()
    run.write_status("Training done")


def _stopped(run: RunDir, launch: Launch) -> bool:
    """Tell whether the run was stopped as asked, though torchrun failed: Slurm's SIGTERM reaches it as well as the ranks."""
    return any(event.kind == "stopped" and event.seq > launch.after for event in EventReader(run.events_path).read())


def _how_to_go_on(run: RunDir) -> str:
    return f"Go on from the last checkpoint: medsft resume {run.path}"


def _error_records(run: RunDir) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for path in run.control.glob("error_rank_*.json"):
        try:
            records.append(json.loads(path.read_text()))
        except (ValueError, FileNotFoundError):
            continue
    return records


def _causes(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [r for r in records if r["expected"] or not _SECONDARY.search(r["reason"])]


def _has_cause(run: RunDir) -> bool:
    return bool(_causes(_error_records(run)))


def _first_error(run: RunDir, launch: Launch, code: int) -> MedsftError:
    """Return the error of the rank that failed first, not of those that only lost its company."""
    records = _error_records(run)
    if causes := _causes(records):
        first = min(causes, key=lambda r: (not r["expected"], r["time"]))
        return _error(str(first["reason"]), str(first["remedy"]), ExitCode(first["exit_code"]))
    if killed := _killed_ranks(run, launch):
        rank, number = killed[0]
        by = " (SIGKILL: by a person, or by the system when memory ran out)." if number == signal.SIGKILL else "."
        return _error(f"Rank {rank} was killed by signal {number}{by}", _how_to_go_on(run), ExitCode.TRAINING)
    if records:
        first = min(records, key=lambda r: r["time"])
        return _error(f"Rank {first['rank']}: {first['reason']}", _how_to_go_on(run), ExitCode.TRAINING)
    why = f"{run.logs / 'launcher.log'} says why. {_how_to_go_on(run)}"
    return _error(f"The launcher ended with code {code}.", why, ExitCode.LAUNCH)


def _error(reason: str, remedy: str, exit_code: ExitCode) -> MedsftError:
    error = MedsftError(reason, hint=remedy)
    error.exit_code = exit_code
    return error


def _killed_ranks(run: RunDir, launch: Launch) -> list[tuple[int, int]]:
    """Return (rank, signal) of the ranks that torchrun reports as killed in this start, on each node the first in front."""
    result = []
    for node in range(launch.nodes):
        try:
            text = _launcher_log(run, node).read_text(errors="replace").rpartition(_START_MARK)[2]
        except FileNotFoundError:
            continue
        failures, _, root_cause = text.partition("Root Cause")
        # torchrun numbers nodes in an order of its own, so only the number on the node counts
        found = re.findall(r"\(local_rank: (\d+)\)\s+exitcode\s+: -(\d+)", root_cause + failures)
        result += [(node * launch.nproc_per_node + int(local), int(number)) for local, number in found]
    return [(rank, number) for rank, number in result if number != signal.SIGTERM]


def _close_log(run: RunDir, failure: MedsftError | None) -> None:
    if failure is None:
        return
    events = EventWriter(run.events_path)
    events.write("failed", reason=failure.message, remedy=failure.hint, exit_code=int(failure.exit_code))
    events.close()


def _leave_end(run: RunDir, node: int, failure: MedsftError | None) -> None:
    """Write down for the command that waits on this node how the run ended: node 0 may no longer be there to log it."""
    error = failure or _error("", "", ExitCode.DONE)
    record = {"reason": error.message, "remedy": error.hint, "exit_code": int(error.exit_code)}
    write_atomically(run.end_path(node), json.dumps(record))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
