from __future__ import annotations

import hashlib
import json
import os
import signal

import pytest

from medsft.core.models.run_folder import MANIFEST_NAME
from medsft.core.run import integrity
from medsft.core.run.rundir import RunDir


@pytest.fixture
def run(tmp_path):
    """A run with checkpoints at 3 and 6, of two files each."""
    run = RunDir(tmp_path)
    for iteration in (3, 6):
        path = run.checkpoint_path(iteration)
        path.mkdir()
        for name in ("a", "b"):
            (path / name).write_bytes(f"{name}{iteration}".encode() * 1000)
        files = {name: integrity.hash_file(path / name) for name in ("a", "b")}
        (path / MANIFEST_NAME).write_text(json.dumps({"files": files}))
    return run


def test_the_latest_good_checkpoint(run):
    assert integrity.find_good(run) == (6, [])


def test_a_file_of_many_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(integrity, "_CHUNK_BYTES", 7)
    path = tmp_path / "file"
    for content in (b"", b"1234567", bytes(range(256)) * 3):
        path.write_bytes(content)
        assert integrity.hash_file(path) == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def flip(path):
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (flip, "the content of b has changed"),
        (lambda path: path.unlink(), "b is missing"),
        (lambda path: path.write_bytes(b"short"), "b has 5 bytes, not 2,000"),
        (lambda path: path.with_name("manifest.json").write_text("[]"), "manifest.json cannot be read"),
    ],
)
def test_a_damaged_one_is_named_and_the_one_before_it_used(run, harm, problem):
    harm(run.checkpoint_path(6) / "b")
    iteration, problems = integrity.find_good(run)
    assert iteration == 3
    assert len(problems) == 1
    assert problems[0].startswith(f"checkpoint {run.checkpoint_path(6).name} is damaged: {problem}")


def test_what_was_hashed_ahead_is_not_read_again(run, monkeypatch):
    read = []
    digest = integrity._digest
    monkeypatch.setattr(integrity, "_digest", lambda path: (read.append(path), digest(path))[1])
    for name in ("a", "b"):
        os.utime(run.checkpoint_path(6) / name)  # by its time, not the file that the fixture hashed
    integrity.hash_ahead(run)
    assert integrity.find_good(run) == (6, [])
    assert sorted(path.name for path in read) == ["a", "b"]


def test_a_file_that_changed_after_it_was_hashed_is_read_again(run):
    integrity.hash_ahead(run)
    flip(run.checkpoint_path(6) / "a")
    assert integrity.find_good(run)[0] == 3


def test_nothing_to_hash_ahead(run, tmp_path):
    integrity.hash_ahead(RunDir(tmp_path / "new"))
    (run.checkpoint_path(6) / "a").unlink()
    integrity.hash_ahead(run)
    (run.checkpoint_path(6) / MANIFEST_NAME).write_text("{")
    integrity.hash_ahead(run)
    assert integrity.find_good(run)[0] == 3


def test_a_forked_process_hashes_with_threads_of_its_own(run):
    assert integrity.find_good(run) == (6, [])
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)  # ends a child that waits for threads of its parent
        found = None
        try:
            for file in run.checkpoint_path(6).iterdir():
                os.utime(file, (1, 1))  # so that it is hashed anew
            found = integrity.find_good(run)
        finally:
            os._exit(0 if found == (6, []) else 1)
    assert os.waitpid(child, 0) == (child, 0)
