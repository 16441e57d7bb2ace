from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

from medsft.core.run.events import Event
from medsft.core.run.rundir import LOST_AFTER_SECONDS, RunDir, find_runs, iterations_in
from medsft.errors import MismatchError


@pytest.fixture
def run(tmp_path) -> RunDir:
    folder = RunDir(tmp_path / "run")
    folder.create('{"format": 1}')
    return folder


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def log(run: RunDir, *kinds: str) -> None:
    data = {"iteration": 3, "total": 9}
    run.events_path.write_text("".join(Event(n, float(n), kind, data).to_line() for n, kind in enumerate(kinds)))


def claim_for(run: RunDir, **record: object) -> None:
    run.process_path.write_text(json.dumps({"host": socket.gethostname(), "pid": 1, "started": 0.0} | record))


def state(run: RunDir) -> str:
    return run.state(run.view())


def test_a_plan_is_written_once(run):
    assert run.exists()
    assert run.read_plan() == {"format": 1}
    with pytest.raises(FileExistsError):
        run.create("{}")
    assert run.read_plan() == {"format": 1}


def test_a_folder_without_a_plan_is_no_run(tmp_path):
    with pytest.raises(MismatchError, match=r"no plan\.json"):
        RunDir(tmp_path).read_plan()


def test_a_damaged_plan_is_named(run):
    run.plan_path.write_text("{")
    with pytest.raises(MismatchError, match="damaged"):
        run.read_plan()


def test_the_states_of_a_run(run, dead_pid):
    assert state(run) == "planned"
    run.claim(os.getpid())
    assert state(run) == "running"
    log(run, "run_started", "step")
    assert state(run) == "running"
    run.request("stop")
    assert state(run) == "stopping"
    claim_for(run, pid=dead_pid)
    assert state(run) == "lost"
    for kind in ("stopped", "finished", "failed"):
        log(run, "run_started", kind)
        assert state(run) == kind


def test_a_process_that_took_over_the_number_is_another_one(run):
    claim_for(run, pid=os.getpid(), started=1.0)
    assert not run.alive()


def test_on_another_machine_the_heartbeat_counts(run):
    claim_for(run, host="elsewhere")
    assert not run.alive()
    run.beat()
    assert run.alive()
    past = run.heartbeat_path.stat().st_mtime - LOST_AFTER_SECONDS - 1
    os.utime(run.heartbeat_path, (past, past))
    assert not run.alive()


def test_a_damaged_claim_is_nobody(run):
    run.process_path.write_text("{")
    assert not run.alive()
    run.process_path.write_text(json.dumps({"host": socket.gethostname(), "pid": "x", "started": 0}))
    assert not run.alive()


def test_requests_are_made_and_taken_back(run):
    assert not run.requested("save")
    run.request("save")
    assert run.requested("save")
    run.clear_request("save")
    run.clear_request("save")
    assert not run.requested("save")


def test_checkpoints_are_whole_names_only(run):
    for name in ("iter_0000800", "iter_0000100", "iter_0000900.tmp", "iter_12"):
        (run.path / name).mkdir()
    assert run.checkpoints() == [100, 800]
    assert run.latest_checkpoint() is None, "none of them has what its manifest names"
    run.set_latest_checkpoint(800)
    assert run.latest_checkpoint() is None, "what is on the disk decides, not the tracker"
    (run.checkpoint_path(100) / "manifest.json").write_text('{"iteration": 100, "files": {}}')
    assert run.latest_checkpoint() == 100
    (run.checkpoint_path(800) / "manifest.json").write_text('{"iteration": 100, "files": {}}')
    assert run.latest_checkpoint() == 100, "a manifest of another checkpoint"
    assert iterations_in(run.path / "nowhere") == []


def test_the_status_file_is_appended_or_begun_anew(run):
    run.write_status("a", fresh=True)
    run.write_status("b")
    assert (run.path / ".status.txt").read_text() == "a\nb\n"
    run.write_status("c", fresh=True)
    assert (run.path / ".status.txt").read_text() == "c\n"


def test_a_run_is_deleted_only_when_nobody_works_on_it(run, dead_pid):
    (run.path / "iter_0000100").mkdir()
    (run.path / "iter_0000100" / "weights").write_bytes(b"x" * 1000)
    assert run.size_bytes() > 1000
    run.claim(os.getpid())
    with pytest.raises(MismatchError, match="running"):
        run.delete()
    claim_for(run, pid=dead_pid)
    run.delete()
    assert not run.path.exists()


def test_runs_are_found_latest_first(tmp_path):
    for number, name in enumerate(("old", "new")):
        run = RunDir(tmp_path / name)
        run.create("{}")
        os.utime(run.plan_path, (number, number))
    (tmp_path / "no-run").mkdir()
    assert [run.path.name for run in find_runs(tmp_path)] == ["new", "old"]
    assert find_runs(tmp_path / "nowhere") == []
