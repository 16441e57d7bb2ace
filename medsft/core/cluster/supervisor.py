"""Watches over one node's ranks, in a session of its own, without torch.

    python -m medsft.core.cluster.supervisor RUN_DIR NODE

It starts torchrun, gives signs of life, turns SIGTERM into a graceful stop, and ends the ranks when another node is lost,
when torchrun was killed, or when the run's folder is gone. On node 0 it also exports the finished model, and writes down how
the run ended when the ranks no longer can.
"""

from __future__ import annotations

import json
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

from medsft.core.cluster.membership import Company
from medsft.core.cluster.rendezvous import local_address, network_environment
from medsft.core.disk import trouble
from medsft.core.planning.plan import RunPlan
from medsft.core.run.causes import (
    START_MARK,
    error_with,
    first_error,
    has_cause,
    how_to_go_on,
    launcher_log,
    was_stopped,
    was_stopped_while_starting,
)
from medsft.core.run.events import EventWriter
from medsft.core.run.exports import finish
from medsft.core.run.integrity import damage
from medsft.core.run.launch import STOP_SECONDS, Launch, engine_environment, node_suffix, planned, read_launch
from medsft.core.run.processes import HeldFolder, adopt_orphans, die_with, end_children
from medsft.core.run.rundir import HEARTBEAT_SECONDS, RunDir, write_atomically
from medsft.errors import DiskError, ExitCode, LaunchError, MedsftError

_SETTLE_SECONDS = 35.0
"""How long all ranks may take to end after the first has failed. Longer than it takes to notice that a node is lost, so that
this is named as the cause, and not the connections that it broke."""
_POLL_SECONDS = 0.2
_stop_in_person = threading.Event()
"""Set when this process was asked to stop and could not write that down: it passes the signal on instead."""


def main(run_dir: str, node: int = 0) -> int:
    """Run the plan of `run_dir` to its end, a stop, or a failure, and return the exit code."""
    run = RunDir(Path(run_dir))
    signal.signal(signal.SIGTERM, lambda *_: _ask_to_stop(run))
    _stop_in_person.clear()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # whoever started this process has blocked it until now
    adopt_orphans()
    folder = HeldFolder(run.path)
    with suppress(OSError):  # a full disk: whoever started this process has noted it, too
        run.claim(os.getpid(), node=node)
    ended = threading.Event()
    threading.Thread(target=_give_signs_of_life, args=(run, folder, node, ended), daemon=True).start()
    failure: MedsftError | None = None
    home: RunDir | None = run
    try:
        launch = read_launch(run)
        company = Company(launch, node)
        failure = _attempt(run, launch, company, folder, node)
        if not folder.is_in_place():
            home, failure = _follow_the_folder(run, folder)
        try:
            if home is not None and node == 0:
                _close_log(home, failure)
            elif home is not None:
                _leave_end(home, node, failure)
        except OSError:  # whoever waits for this run finds no end of it in the log, and asks the disk
            with suppress(OSError):
                sys.stderr.write(f"{failure}\n")
        if node == 0:
            company.dismiss(failure)
        company.close()
    finally:
        ended.set()
        if home is not None:
            home.release(node=node)
    return int(failure.exit_code) if failure else int(ExitCode.DONE)


def _ask_to_stop(run: RunDir) -> None:
    try:
        run.request("stop")
    except (DiskError, OSError):  # no room for the request; or the folder is gone, which ends the run, too
        _stop_in_person.set()


def _is_to_stop(run: RunDir) -> bool:
    return run.requested("stop") or _stop_in_person.is_set()


def _give_signs_of_life(run: RunDir, folder: HeldFolder, node: int, ended: threading.Event) -> None:
    """Beat, and claim the run again when somebody has removed its control folder: it would look dead, and be deleted."""
    while not ended.wait(HEARTBEAT_SECONDS):
        with suppress(OSError):
            if not folder.is_in_place():
                continue
            if not run.node_process_path(node).exists():
                run.claim(os.getpid(), node=node)
            elif node == 0:
                run.beat()


def _attempt(run: RunDir, launch: Launch, company: Company, folder: HeldFolder, node: int) -> MedsftError | None:
    """Do this node's part, and return what went wrong."""
    try:
        company.meet()
        if node:
            _follow(run, launch, company, folder, node)
        else:
            _lead(run, launch, company, folder)
    except MedsftError as error:
        return error
    except BaseException as error:
        if (found := trouble(error, run.path)) is not None:
            return error_with(found.message, how_to_go_on(run), ExitCode.TRAINING)
        return LaunchError(f"{type(error).__name__}: {error}", hint=f"{run.logs}/supervisor{node_suffix(node)}.log has more.")
    return None


def _lead(run: RunDir, launch: Launch, company: Company, folder: HeldFolder) -> None:
    """Train and export. Raises what has ended the run."""
    plan = planned(run)
    if not _is_trained(run, plan):
        if _is_to_stop(run):
            _note_stop(run)
            return
        code = _train(run, launch, company, folder, node=0)
        if code == 0 or not has_cause(run):
            complete = company.wait(STOP_SECONDS if code == 0 else _SETTLE_SECONDS)
            if code == 0 and not complete:
                raise LaunchError("The ranks of another node do not end.", hint=how_to_go_on(run))
        code = code or next(filter(None, company.codes.values()), 0)
        if code and not was_stopped(run, launch):
            if not was_stopped_while_starting(run, launch, asked=_stop_in_person.is_set()):
                raise first_error(run, launch, code)
            _note_stop(run)
    if plan.num_iterations in run.checkpoints():  # otherwise it was stopped on request: the reporting rank said so
        finish(run, plan)


def _is_trained(run: RunDir, plan: RunPlan) -> bool:
    """Tell whether the checkpoint of the last iteration is there, and good. What is on the disk decides, no tracker."""
    last = plan.num_iterations
    return last in run.checkpoints() and damage(run.checkpoint_path(last)) is None


def _note_stop(run: RunDir) -> None:
    """Log a stop of which no rank could."""
    events = EventWriter(run.events_path)
    events.write("stopped", iteration=run.latest_checkpoint() or 0)
    events.close()


def _follow(run: RunDir, launch: Launch, company: Company, folder: HeldFolder, node: int) -> None:
    """Train on a node other than 0, and let node 0 say how the run ended. Raises what has ended it."""
    trained = _is_trained(run, planned(run)) or _is_to_stop(run)
    company.report(0 if trained else _train(run, launch, company, folder, node))


def _train(run: RunDir, launch: Launch, company: Company, folder: HeldFolder, node: int) -> int:
    """Run this node's ranks and return torchrun's exit code.

    Raises `LaunchError` when another node is lost meanwhile, or the folder is gone, and `MedsftError` when torchrun was killed.
    """
    command = torchrun_command(run, launch, node)
    # Ranks that are started again must not meet in the store of those that died: torch 2.13 keeps their addresses there.
    environment = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", **engine_environment(launch.nproc_per_node)}
    if launch.addr is not None and launch.nodes > 1:
        environment = {**network_environment(launch.addr), **environment, "MEDSFT_NODE": str(node)}
    with launcher_log(run, node).open("ab") as log:
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
            run.claim_part(f"torchrun_{node}", process.pid, node=node)
        _watch(process, company, folder)
    finally:
        _kill(process)
    if process.wait() < 0 and not (_stop_in_person.is_set() and process.returncode == -signal.SIGTERM):
        # Its ranks save and end as it would have made them do, and nothing that hangs is left behind.
        end_children(seconds=STOP_SECONDS)
        number = -process.returncode
        by = " (SIGKILL: by a person, or by the system when memory ran out)" if number == signal.SIGKILL else ""
        saved = run.latest_checkpoint()
        kept = f" Its ranks were ended; the latest checkpoint is of iteration {saved}." if saved else " Its ranks were ended."
        raise error_with(f"torchrun was killed by signal {number}{by}.{kept}", how_to_go_on(run), ExitCode.TRAINING)
    return process.returncode


def _watch(process: subprocess.Popen[bytes], company: Company, folder: HeldFolder) -> None:
    """Return when torchrun has ended, or some time after the ranks of another node have failed.

    Raises as `Company.watch`, and `LaunchError` when the run's folder is gone.
    """
    deadline: float | None = None
    told_to_stop = False
    while process.poll() is None and (deadline is None or time.monotonic() < deadline):
        if company.watch(_POLL_SECONDS) and deadline is None:
            deadline = time.monotonic() + _SETTLE_SECONDS
        if not folder.is_in_place():
            raise LaunchError("The folder of the run is gone.")
        if _stop_in_person.is_set() and not told_to_stop:
            told_to_stop = True  # once: a second signal would end torchrun, and its ranks while they save
            process.terminate()


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
    end_children(seconds=0)


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
        *("-m", "medsft.core.engine.commands.worker", str(run.path)),
    ]


def _follow_the_folder(run: RunDir, folder: HeldFolder) -> tuple[RunDir | None, MedsftError]:
    """Return the run where it lies now, None for nowhere, and what to say to whoever finds it there."""
    now = folder.where()
    if now is None:
        error = error_with(f"{run.path} was removed while it trained: training has ended.", "", ExitCode.TRAINING)
        sys.stderr.write(f"{error}\n")
        return None, error
    moved = RunDir(now)
    reason = f"{run.path} was moved to {now} while it trained: training has ended."
    return moved, error_with(reason, how_to_go_on(moved), ExitCode.TRAINING)


def _close_log(run: RunDir, failure: MedsftError | None) -> None:
    if failure is None:
        return
    events = EventWriter(run.events_path)
    events.write("failed", reason=failure.message, remedy=failure.hint, exit_code=int(failure.exit_code))
    events.close()


def _leave_end(run: RunDir, node: int, failure: MedsftError | None) -> None:
    """Write down for the command that waits on this node how the run ended: node 0 may no longer be there to log it."""
    error = failure or error_with("", "", ExitCode.DONE)
    record = {"reason": error.message, "remedy": error.hint, "exit_code": int(error.exit_code)}
    write_atomically(run.end_path(node), json.dumps(record))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
