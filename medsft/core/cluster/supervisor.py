"""Watches over one node's ranks, in a session of its own, without torch.

    python -m medsft.core.cluster.supervisor RUN_DIR NODE

It starts the launcher of the ranks (torchrun, or `one_rank` for a single one), sends heartbeats, turns SIGTERM into a
graceful stop, and ends the ranks when another node is lost, when their launcher was killed, or when the run's folder was
removed. On node 0 it also exports the finished model, and logs how the run ended when the ranks no longer can.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil

from medsft.core.cluster.membership import Membership
from medsft.core.cluster.rendezvous import local_address, network_environment
from medsft.core.disk import trouble
from medsft.core.planning.plan import RunPlan
from medsft.core.run.best import end_of_training
from medsft.core.run.causes import (
    START_MARK,
    first_failure,
    has_cause,
    how_to_resume,
    was_stopped,
    was_stopped_while_starting,
)
from medsft.core.run.events import EventWriter
from medsft.core.run.exports import finish
from medsft.core.run.integrity import damage
from medsft.core.run.launch import (
    ONE_RANK,
    STOP_SECONDS,
    TORCHRUN,
    WORKER,
    Launch,
    engine_environment,
    load_launched_plan,
    read_launch,
)
from medsft.core.run.processes import HeldFolder, adopt_orphans, die_with, end_children
from medsft.core.run.rundir import HEARTBEAT_SECONDS, RunDir
from medsft.errors import DiskError, ExitCode, Failure, LaunchError, MedsftError

_SETTLE_SECONDS = 35.0
"""How long all ranks may take to end after the first has failed. Longer than it takes to notice that a node is lost, so that
this is named as the cause, and not the connections that it broke."""
_POLL_SECONDS = 0.2
_stop_unrecorded = threading.Event()
"""Set when this process was asked to stop and could not write the request to the disk: it passes the signal on instead."""


def main(run_dir: str, node: int = 0) -> int:
    """Run the plan of `run_dir` to its end, a stop, or a failure, and return the exit code."""
    run = RunDir(Path(run_dir))
    signal.signal(signal.SIGTERM, lambda *_: _ask_to_stop(run))
    _stop_unrecorded.clear()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # whoever started this process has blocked it until now
    adopt_orphans()
    folder = HeldFolder(run.path)
    with suppress(OSError):  # a full disk: whoever started this process has noted it, too
        run.claim(os.getpid(), node=node)
    ended = threading.Event()
    threading.Thread(target=_send_heartbeats, args=(run, folder, node, ended), daemon=True).start()
    failure: Failure | None = None
    home: RunDir | None = run
    try:
        launch = read_launch(run)
        membership = Membership(launch, node)
        failure = _supervise(run, launch, membership, folder, node)
        if not folder.is_in_place():
            home, failure = _find_moved_folder(run, folder)
        try:
            if home is not None and node == 0:
                _log_failure(home, failure)
            elif home is not None:
                _write_end(home, node, failure)
        except OSError:  # whoever waits for this run finds no end of it in the log, and asks the disk
            with suppress(OSError):
                sys.stderr.write(f"{failure.reason if failure else ''}\n")
        if node == 0:
            membership.announce_end(failure)
        membership.close()
    finally:
        ended.set()
        if home is not None:
            home.release(node=node)
    return int(failure.exit_code) if failure else int(ExitCode.DONE)


def _ask_to_stop(run: RunDir) -> None:
    try:
        run.request("stop")
    except (DiskError, OSError):  # no room for the request; or the folder is gone, which ends the run, too
        _stop_unrecorded.set()


def _is_to_stop(run: RunDir) -> bool:
    return run.requested("stop") or _stop_unrecorded.is_set()


def _send_heartbeats(run: RunDir, folder: HeldFolder, node: int, ended: threading.Event) -> None:
    """Touch the heartbeat, and claim the run again when somebody has removed its control folder: it would pass for dead."""
    while not ended.wait(HEARTBEAT_SECONDS):
        with suppress(OSError):
            if not folder.is_in_place():
                continue
            if not run.node_process_path(node).exists():
                run.claim(os.getpid(), node=node)
            elif node == 0:
                run.beat()


def _supervise(run: RunDir, launch: Launch, membership: Membership, folder: HeldFolder, node: int) -> Failure | None:
    """Do this node's part of the run, and return what has ended it, None where nothing went wrong."""
    try:
        membership.connect()
        if node:
            _supervise_other_node(run, launch, membership, folder, node)
        else:
            _supervise_node_0(run, launch, membership, folder)
    except MedsftError as error:
        return error.failure
    except BaseException as error:
        if (found := trouble(error, run.path)) is not None:
            return Failure(found.message, how_to_resume(run))
        return Failure(f"{type(error).__name__}: {error}", f"{run.supervisor_log(node)} has more.", ExitCode.LAUNCH)
    return None


def _supervise_node_0(run: RunDir, launch: Launch, membership: Membership, folder: HeldFolder) -> None:
    """Train and export. Raises what has ended the run."""
    plan = load_launched_plan(run)
    if not _is_trained(run, plan):
        if _is_to_stop(run):
            _log_stop(run)
            return
        code = _train(run, launch, membership, folder, node=0)
        if code == 0 or not has_cause(run):
            complete = membership.wait_for_ranks(STOP_SECONDS if code == 0 else _SETTLE_SECONDS)
            if code == 0 and not complete:
                raise LaunchError(
                    f"The ranks of another node did not exit within {STOP_SECONDS} seconds.", hint=how_to_resume(run)
                )
        code = code or next(filter(None, membership.exit_codes.values()), 0)
        if code and not was_stopped(run, launch):
            if not was_stopped_while_starting(run, launch, asked=_stop_unrecorded.is_set()):
                first_failure(run, launch, code).raise_()
            _log_stop(run)
    end = end_of_training(run, plan)
    if end is not None:  # otherwise it was stopped on request: the reporting rank said so
        finish(run, plan, end)


def _is_trained(run: RunDir, plan: RunPlan) -> bool:
    """Tell whether the checkpoint of the end of training is there, and good. What is on the disk decides, no tracker."""
    end = end_of_training(run, plan)
    return end is not None and damage(run.checkpoint_path(end)) is None


def _log_stop(run: RunDir) -> None:
    """Log a stop that no rank could log."""
    events = EventWriter(run.events_path)
    events.write("stopped", iteration=run.latest_checkpoint() or 0)
    events.close()


def _supervise_other_node(run: RunDir, launch: Launch, membership: Membership, folder: HeldFolder, node: int) -> None:
    """Train on a node other than 0, and wait for what node 0 says has ended the run. Raises that."""
    trained = _is_trained(run, load_launched_plan(run)) or _is_to_stop(run)
    membership.report_exit_code(0 if trained else _train(run, launch, membership, folder, node))


def _train(run: RunDir, launch: Launch, membership: Membership, folder: HeldFolder, node: int) -> int:
    """Run this node's ranks and return the exit code of their launcher.

    Raises `LaunchError` when another node is lost meanwhile or the folder is gone, `ReportedError` when the launcher was
    killed.
    """
    command = launcher_command(run, launch, node)
    # Ranks that are started again must not meet in the store of those that died: torch 2.13 keeps their addresses there.
    environment = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", **engine_environment(launch.nproc_per_node)}
    if launch.addr is not None and launch.nodes > 1:
        environment = {**network_environment(launch.addr), **environment, "MEDSFT_NODE": str(node)}
    with run.launcher_log(node).open("ab") as log:
        log.write(f"{START_MARK}\n".encode())
        log.flush()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            # When this supervisor is killed, the ranks save and end: nothing runs unseen.
            preexec_fn=partial(die_with, os.getpid()),
        )
    try:
        with suppress(psutil.NoSuchProcess):
            run.claim_part(f"launcher_{node}", process.pid, node=node)
        _wait_for_ranks(process, membership, folder)
    finally:
        _kill(process)
    if process.wait() < 0 and not (_stop_unrecorded.is_set() and process.returncode == -signal.SIGTERM):
        # Its ranks save and end as it would have made them do, and nothing that hangs is left behind.
        end_children(seconds=STOP_SECONDS)
        number = -process.returncode
        by = " (SIGKILL: by a person, or by the system when memory ran out)" if number == signal.SIGKILL else ""
        saved = run.latest_checkpoint()
        kept = f" Its ranks were ended; the latest checkpoint is of iteration {saved}." if saved else " Its ranks were ended."
        Failure(f"The launcher of the ranks was killed by signal {number}{by}.{kept}", how_to_resume(run)).raise_()
    return process.returncode


def _wait_for_ranks(process: subprocess.Popen[bytes], membership: Membership, folder: HeldFolder) -> None:
    """Return when the launcher has ended, or some time after the ranks of another node have failed.

    Raises as `Membership.poll`, and `LaunchError` when the run's folder is gone.
    """
    deadline: float | None = None
    told_to_stop = False
    while process.poll() is None and (deadline is None or time.monotonic() < deadline):
        if membership.poll(_POLL_SECONDS) and deadline is None:
            deadline = time.monotonic() + _SETTLE_SECONDS
        if not folder.is_in_place():
            raise LaunchError("The run's folder was moved or removed.")
        if _stop_unrecorded.is_set() and not told_to_stop:
            told_to_stop = True  # once: a second signal would end the launcher, and its ranks while they save
            process.terminate()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill launcher and ranks, if they still run: after a SIGTERM they would first wait for the ranks of the lost node."""
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
    end_children(seconds=0)


def launcher_command(run: RunDir, launch: Launch, node: int = 0) -> list[str]:
    """Return the command that starts this node's ranks.

    Nodes meet by torchrun's c10d rendezvous: with the static one, a node that restarts its ranks does not make the others
    restart theirs.
    """
    if launch.nodes * launch.nproc_per_node == 1:
        return [sys.executable, "-m", ONE_RANK, str(run.path), str(launch.max_restarts)]
    if launch.nodes == 1:
        rendezvous = ["--standalone"]
    else:
        assert launch.addr is not None
        rendezvous = [
            f"--nnodes={launch.nodes}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={launch.addr}:{launch.port}",
            f"--rdzv-id={launch.start}",
            f"--rdzv-conf=is_host={str(node == 0).lower()}",  # torchrun would guess it from the host's name
            f"--local-addr={local_address(launch.addr)}",
        ]
    return [
        *(sys.executable, "-m", TORCHRUN),
        *rendezvous,
        f"--nproc-per-node={launch.nproc_per_node}",
        f"--max-restarts={launch.max_restarts}",
        f"--log-dir={run.logs}",
        "--redirects=3",
        *("-m", WORKER, str(run.path)),
    ]


def _find_moved_folder(run: RunDir, folder: HeldFolder) -> tuple[RunDir | None, Failure]:
    """Return the run where it lies now, None when it was removed, and the failure to log for whoever finds it there."""
    now = folder.where()
    if now is None:
        removed = Failure(f"{run.path} was removed while it trained: training has ended.")
        sys.stderr.write(f"{removed.reason}\n")
        return None, removed
    moved = RunDir(now)
    return moved, Failure(f"{run.path} was moved to {now} while it trained: training has ended.", how_to_resume(moved))


def _log_failure(run: RunDir, failure: Failure | None) -> None:
    if failure is None:
        return
    events = EventWriter(run.events_path)
    events.write("failed", **failure.to_json())
    events.close()


def _write_end(run: RunDir, node: int, failure: Failure | None) -> None:
    """Write for the command that waits on this node how the run ended: node 0 may no longer be there to log it."""
    run.write_end(node, failure or Failure("", exit_code=ExitCode.DONE))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
