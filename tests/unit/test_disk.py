"""What a disk that takes nothing makes of each kind of small write, on real ones: full, without inodes, read-only."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import small_disks

from medsft.core import disk, files
from medsft.core.run.events import EventReader, EventWriter
from medsft.errors import DiskError, ExitCode

FULL = "The disk is full: {mount} has 0 B free of 1.0 MiB; "
WITHOUT_INODES = "The disk is full: {mount} has no inodes left for new files ("
READ_ONLY = "The disk {mount} is read-only: "


@pytest.fixture(params=["full", "without inodes", "read-only"])
def spoilt(request, tmp_path):
    """A disk on which nothing can be made, and how a message about it begins."""
    options = "size=1m,nr_inodes=40" if request.param == "without inodes" else "size=1m"
    with small_disks.mounted(tmp_path / "disk", options) as folder:
        (folder / "there").mkdir()
        if request.param == "full":
            small_disks.fill(folder)
            begins = FULL
        elif request.param == "without inodes":
            small_disks.take_inodes(folder)
            begins = WITHOUT_INODES
        else:
            small_disks.make_read_only(folder)
            begins = READ_ONLY
        yield folder, begins.format(mount=folder)


def test_the_message_names_the_disk_and_the_file_and_nothing_is_left(spoilt):
    folder, begins = spoilt
    path = folder / "there" / "file.json"
    with pytest.raises(DiskError) as caught, disk.writing_to(folder, ExitCode.DATA):
        files.write_atomically(path, "x" * 5000)
    assert str(caught.value).startswith(begins)
    assert str(folder / "there") in str(caught.value)
    assert caught.value.exit_code == ExitCode.DATA
    assert list((folder / "there").iterdir()) == []


def test_a_folder_that_cannot_be_made(spoilt):
    folder, begins = spoilt
    with (
        pytest.raises(DiskError) as caught,
        disk.writing_to(folder, ExitCode.USAGE),
        files.new_folder(folder / "there" / "new") as new,
    ):
        (new / "file").write_bytes(bytes(5000))
    assert str(caught.value).startswith(begins)
    assert list((folder / "there").iterdir()) == []


def test_a_disk_is_asked_where_an_error_does_not_say(spoilt):
    folder, begins = spoilt
    found = disk.probe(folder / "there")
    assert found is not None
    assert found.message.startswith(begins)
    assert list((folder / "there").iterdir()) == []


def test_a_disk_with_room_has_no_trouble(tmp_path):
    assert disk.probe(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EDQUOT, "Your quota is used up on the disk /"),
        (errno.EACCES, "Permission denied: "),
        (errno.EIO, "does not answer"),
        (errno.EFBIG, "takes no file as large"),
    ],
)
def test_other_kinds(tmp_path, number, words):
    found = disk.trouble(OSError(number, os.strerror(number), str(tmp_path / "a")), Path("/elsewhere"))
    assert found is not None
    assert words in found.message
    assert str(tmp_path / "a") in found.message


def test_what_libraries_make_of_an_error(tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device")
    collected = BaseException("of the ranks")
    collected.failures = {3: (full, None)}  # type: ignore[attr-defined]  # as torch's CheckpointException
    raised_from = RuntimeError("unexpected pos")
    raised_from.__context__ = full
    in_rust = Exception("I/O error: No space left on device (os error 28)")
    for error in (full, collected, raised_from, in_rust):
        found = disk.trouble(error, tmp_path)
        assert found is not None
        assert str(tmp_path) in found.message
    for error in (ValueError("os error"), FileNotFoundError(errno.ENOENT, "no such file"), KeyError(28)):
        assert disk.trouble(error, tmp_path) is None


def test_other_errors_pass(tmp_path):
    with pytest.raises(FileNotFoundError), disk.writing_to(tmp_path, ExitCode.DATA):
        (tmp_path / "none").read_text()


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_is_named_once_where_there_are_no_hard_links(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "link", refuse)
    files.write_atomically(tmp_path / "a", "first", replace=False)
    with pytest.raises(FileExistsError):
        files.write_atomically(tmp_path / "a", "second", replace=False)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "first")]


def test_folders_that_cannot_be_synced_are_no_error_but_files_are(tmp_path, monkeypatch):
    def refuse(_):
        raise OSError(errno.EINVAL, "Invalid argument")

    (tmp_path / "a").touch()
    monkeypatch.setattr(files.os, "fsync", refuse)
    files.sync_entry(tmp_path)
    with pytest.raises(OSError, match="Invalid"):
        files.sync_entry(tmp_path / "a")


def test_events_wait_for_room(tmp_path):
    with small_disks.mounted(tmp_path / "disk", "size=1m") as folder:
        log = EventWriter(folder / "events.jsonl")
        log.write("phase", name="training")
        filler = small_disks.fill(folder)
        for iteration in range(200):
            log.write("step", iteration=iteration, loss=1.0)
        shown = EventReader(folder / "events.jsonl").read()
        assert len(shown) < 201
        with pytest.raises(OSError, match="No space"):
            log.write("stopped", iteration=200)
        filler.unlink()
        log.write("step", iteration=200, loss=1.0)
        events = EventReader(folder / "events.jsonl").read()
        assert [event.seq for event in events] == list(range(203))
        assert all(json.loads(line) for line in (folder / "events.jsonl").read_bytes().splitlines())
