"""Folders that appear whole or not at all."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from medsft.core import files
from medsft.core.files import new_folder
from medsft.errors import MismatchError


def test_a_folder_appears_whole_and_durable(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files.os, "fsync", lambda handle: synced.append(str(Path(f"/proc/self/fd/{handle}").readlink())))
    target = tmp_path / "deep" / "model"
    with new_folder(target) as aside:
        (aside / "inner").mkdir()
        (aside / "weights").write_text("w")
        (aside / "inner" / "tokens").write_text("t")
        assert not target.exists()
    assert (target / "inner" / "tokens").read_text() == "t"
    names = [path.rpartition("/")[2] for path in synced]
    assert {"weights", "tokens", "inner"} <= set(names)
    assert names[-2:] == [aside.name, "deep"], "the folder itself, and after the renaming the one that holds its name"
    assert [path.name for path in target.parent.iterdir()] == ["model"]


def test_what_fails_leaves_nothing(tmp_path):
    def fail(aside):
        (aside / "half").touch()
        raise OSError("full")

    with pytest.raises(OSError, match="full"), new_folder(tmp_path / "a" / "b") as aside:
        fail(aside)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_was_taken_meanwhile_is_kept(tmp_path):
    target = tmp_path / "model"

    def both_write(aside):
        (aside / "mine").touch()
        target.mkdir()
        (target / "theirs").touch()

    with pytest.raises(MismatchError, match="exists already"), new_folder(target) as aside:
        both_write(aside)
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "theirs"]


def test_a_file_in_the_place_of_a_parent_is_named(tmp_path):
    (tmp_path / "notes").write_text("mine")
    with (
        pytest.raises(MismatchError, match=r"notes/deep/model: .*notes is no folder"),
        new_folder(tmp_path / "notes/deep/model"),
    ):
        pass
    assert (tmp_path / "notes").read_text() == "mine"


@pytest.mark.parametrize("there", ["file", "folder with a file", "broken link", "link to an empty folder"])
def test_a_name_that_is_taken_is_refused_before_the_work(tmp_path, there):
    target = tmp_path / "model"
    match there:
        case "file":
            target.touch()
        case "folder with a file":
            target.mkdir()
            (target / "theirs").touch()
        case "broken link":
            target.symlink_to(tmp_path / "nowhere")
        case _:
            (tmp_path / "empty").mkdir()
            target.symlink_to(tmp_path / "empty")
    with pytest.raises(MismatchError, match="exists already"), new_folder(target):
        pytest.fail("the work has begun")


def test_an_empty_folder_gives_way(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    with new_folder(target) as aside:
        (aside / "mine").touch()
    assert [path.name for path in target.iterdir()] == ["mine"]


SCRIPT = """
import sys, time
from pathlib import Path
from medsft.core.files import new_folder
with new_folder(Path(sys.argv[1])) as aside:
    (aside / "half").touch()
    print("writing", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_goes_and_what_another_writes_stays(tmp_path):
    target = tmp_path / "mo[d]el"
    begin = [sys.executable, "-c", SCRIPT, str(target)]
    killed, writing = (subprocess.Popen(begin, stdout=subprocess.PIPE, text=True) for _ in range(2))
    try:
        for process in (killed, writing):
            assert process.stdout is not None
            assert process.stdout.readline() == "writing\n"
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        with new_folder(target) as aside:
            (aside / "whole").touch()
        assert sorted(path.name for path in tmp_path.iterdir()) == [f".mo[d]el.{writing.pid}.new", "mo[d]el"]
    finally:
        for process in (killed, writing):
            process.kill()
            process.communicate()
