"""Who lives, who must not outlive whom, and folders that go away."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from live import wait_until_gone

from medsft.core.run import processes
from medsft.core.run.processes import HeldFolder, lives, record_of
from medsft.core.run.rundir import RunDir

CHILD = """
import os, sys, time
from medsft.core.run.processes import end_with_parent
end_with_parent(os.getppid(), patience=60)
print(os.getpid(), flush=True)
time.sleep(60)
"""
PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", sys.argv[1]])
time.sleep(60)
"""
CHILD_OF_THE_DEAD = """
import os, time
from medsft.core.run.processes import end_with_parent
end_with_parent(1 << 30, patience=60)
time.sleep(60)
"""
STARTING_ANOTHER = """
import subprocess, sys
from medsft.core.engine.commands.entry_point import run_process
program = "import os; from medsft.core.run.processes import PARENT_VARIABLE; print(os.environ.get(PARENT_VARIABLE))"
sys.exit(run_process(lambda _: print(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout)))
"""
FORKED = """
import os, subprocess, sys, time
from medsft.core.run.processes import die_with
parent = os.getpid()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], preexec_fn=lambda: die_with(parent))
print(child.pid, flush=True)
time.sleep(60)
"""
ADOPTING = """
import subprocess, sys, psutil
from medsft.core.run.processes import adopt_orphans, end_children
adopt_orphans()
sleep = "import time; time.sleep(60)"
start = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {sleep!r}]).pid, flush=True); {sleep}"
middle = subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE)
orphan = int(middle.stdout.readline())
middle.kill()
middle.wait()
end_children(seconds=20)
print(psutil.pid_exists(orphan))
"""


@pytest.mark.parametrize(("script", "argument"), [(PARENT, CHILD), (FORKED, "")])
def test_nobody_outlives_the_one_that_was_killed(script, argument):
    parent = subprocess.Popen([sys.executable, "-c", script, argument], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    wait_until_gone(child)
    parent.stdout.close()


def test_a_parent_that_was_gone_before_one_could_look():
    done = subprocess.run([sys.executable, "-c", CHILD_OF_THE_DEAD], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == -signal.SIGTERM
    assert "The process that started this one has ended" in done.stderr


def test_orphans_are_adopted_and_ended():
    done = subprocess.run([sys.executable, "-c", ADOPTING], capture_output=True, text=True, timeout=50, check=True)
    assert done.stdout == "False\n"


def test_who_lives(monkeypatch):
    record = record_of(os.getpid())
    assert lives(record)
    assert lives({**record, "started": 1.0}) is False, "another one with its number"
    assert lives({**record, "host": "elsewhere"}) is None
    assert lives({**record, "namespace": "pid:[1]"}) is None, "a container on this host"
    assert lives({name: record[name] for name in ("host", "pid", "started")}), "a record of an earlier version"
    assert lives({}) is False
    assert lives({"host": record["host"]}) is False
    monkeypatch.setattr(processes.socket, "gethostname", lambda: "elsewhere")
    assert lives(record) is None


@pytest.fixture
def run(tmp_path) -> RunDir:
    folder = RunDir(tmp_path / "run")
    folder.create('{"format": 1}')
    return folder


@pytest.fixture
def dead() -> dict[str, object]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    record = record_of(process.pid)
    process.kill()
    process.wait()
    return record


def test_a_run_whose_ranks_outlive_its_supervisor_lives(run, dead):
    run.process_path.write_text(json.dumps(dead))
    assert not run.alive()
    run.claim_part("rank_1", os.getpid())
    assert run.alive()
    assert run.state(run.view()) == "running"
    run.claim_part("rank_1", os.getpid(), node=1)
    assert run.alive(1)
    assert not run.alive(), "of another node"


def test_a_run_that_let_go_is_over_on_every_host(run, monkeypatch):
    run.claim(os.getpid())
    monkeypatch.setattr(processes.socket, "gethostname", lambda: "elsewhere")
    assert run.alive(), "its heartbeat is young"
    run.release()
    assert not run.alive()


def test_a_control_folder_that_is_gone_is_nobody(run):
    run.claim(os.getpid())
    shutil.rmtree(run.control)
    assert not run.alive()
    run.claim(os.getpid())
    assert run.alive()


def test_a_folder_that_goes_away_is_missed_and_found(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    held = HeldFolder(folder)
    assert held.is_in_place()
    assert held.where() == folder
    folder.rename(tmp_path / "moved")
    assert not held.is_in_place()
    folder.mkdir()
    assert not held.is_in_place(), "another one of the same name"
    assert held.where() == tmp_path / "moved"
    (tmp_path / "moved").rmdir()
    assert held.where() is None


def test_an_engine_process_does_not_give_its_parent_to_those_that_it_starts():
    """`medsft convert` starts another for a GGUF file's tokenizer, which would take itself for left behind, and end."""
    environment = {**os.environ, processes.PARENT_VARIABLE: str(os.getpid())}
    done = subprocess.run([sys.executable, "-c", STARTING_ANOTHER], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "None"
