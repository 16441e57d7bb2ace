"""What a disk that takes nothing makes of each kind of small write, on real ones: full, without inodes, read-only."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import small_disks
import tiny

from medsft.core import disk, files, rehearsal, settings
from medsft.core.config.file import save_toml
from medsft.core.config.run_config import RunConfig
from medsft.core.planning.planner import make_plan
from medsft.core.run.draft import Draft, save_draft
from medsft.core.run.events import EventReader, EventWriter
from medsft.core.run.rundir import RunDir
from medsft.errors import ConfigError, DiskError, ExitCode


@pytest.fixture(params=["full", "without inodes", "read-only"])
def spoilt(request, tmp_path):
    """A disk on which nothing can be made, and how a message about it begins."""
    options = "size=1m,nr_inodes=40" if request.param == "without inodes" else "size=1m"
    with small_disks.mounted(tmp_path / "disk", options) as folder:
        (folder / "there").mkdir()
        begins = small_disks.spoil(folder, request.param)
        yield folder, f"{begins}0 B free of 1.0 MiB; " if request.param == "full" else begins


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


WRITERS = {
    "checkpoints add": lambda folder: settings.add_checkpoint(folder / "medsft.toml", "a", 7, Path("/models/a")),
    "datasets add": lambda folder: settings.add_dataset(folder / "medsft.toml", "a", 1000),
    "wizard's draft": lambda folder: save_draft(folder / "draft.json", Draft({"lr": "x" * 5000})),
    "wizard's TOML": lambda folder: save_toml(RunConfig(), folder / "run.toml"),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())
@pytest.mark.parametrize("below", ["", "new/folder"])
def test_small_files_that_a_person_asks_for(spoilt, write, below):
    folder, begins = spoilt
    where = folder / "there" / below
    if below and write is WRITERS["wizard's TOML"]:
        pytest.skip("is written into folders that are there")
    with pytest.raises(ConfigError) as caught:
        write(where)
    assert str(caught.value).startswith(begins)
    assert str(folder / "there") in str(caught.value)
    assert ".tmp" not in str(caught.value)
    assert list((folder / "there").iterdir()) == []


def test_a_settings_file_survives_a_full_disk(tmp_path):
    with small_disks.mounted(tmp_path / "disk", "size=1m") as folder:
        file = folder / "medsft.toml"
        settings.add_dataset(file, "a", 1)
        before = file.read_bytes()
        small_disks.spoil(folder, "full")
        with pytest.raises(ConfigError):
            settings.add_dataset(file, "b", 2)
        assert file.read_bytes() == before


def test_a_plan_that_cannot_be_written(spoilt, tmp_path):
    folder, begins = spoilt
    with pytest.raises(ConfigError) as caught, disk.writing(folder / "there" / "plan.json", "--output"):
        files.write_atomically(folder / "there" / "plan.json", "x" * 5000)
    assert str(caught.value).startswith(f"--output: {begins}")


def test_a_request_for_which_there_is_no_room(tmp_path):
    with small_disks.mounted(tmp_path / "disk", "size=1m,nr_inodes=40") as folder:
        run = RunDir(folder / "run")
        run.make_folders()
        run.claim(os.getpid())
        begins = small_disks.spoil(folder, "without inodes")
        with pytest.raises(DiskError) as caught:
            run.request("stop")
        assert str(caught.value).startswith(begins)
        assert str(run.control / "stop") in caught.value.message
        assert f"kill {os.getpid()}" in caught.value.hint
        assert caught.value.exit_code == ExitCode.LAUNCH
        small_disks.make_room(folder)
        run.request("stop")
        assert run.requested("stop")


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


def test_a_copy_names_where_it_was_to_go(tmp_path):
    error = OSError(errno.ENOSPC, "No space left on device", "/from", None, str(tmp_path / "to"))
    found = disk.trouble(error, Path("/elsewhere"))
    assert found is not None
    assert str(tmp_path / "to") in found.message


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


def test_a_rehearsal_says_which_disk_it_cannot_write_to(tmp_path):
    with small_disks.mounted(tmp_path / "disk", "size=1m") as folder:
        begins = small_disks.spoil(folder, "read-only")
        with pytest.raises(DiskError) as caught, rehearsal._temporary_folder(folder / "runs"):
            pytest.fail("the work has begun")
    assert str(caught.value).startswith(begins)
    assert caught.value.exit_code == ExitCode.LAUNCH


def test_a_folder_that_is_mounted_within_its_own_disk_is_named(tmp_path: Path) -> None:
    """Container hosts hand out folders so, often read-only."""
    with small_disks.mounted(tmp_path / "a disk", "size=1m") as folder:
        inner = folder / "in ner"
        inner.mkdir()
        small_disks.make_read_only(inner)
        try:
            assert disk.mount_of(inner / "not" / "there") == inner
            found = disk.refusal(inner / "not" / "there")
            assert found is not None
            assert found.message == f"The disk {inner} is read-only: {inner}/not/there cannot be written."
            assert disk.refusal(folder / "new") is None
        finally:
            small_disks.make_room(inner)


def test_a_plan_says_where_a_run_cannot_be_written(tmp_path: Path) -> None:
    config, entries = tiny.plannable(tmp_path, save_checkpoint_dir="/proc/runs", tokenized_data_dir="/proc/sets")
    warnings = make_plan(config, entries, ahead=True).warnings
    for flag in ("--save_checkpoint_dir", "--tokenized_data_dir"):
        assert any(line.startswith(f"{flag}: /proc holds what the system says of itself") for line in warnings)
    config, entries = tiny.plannable(tmp_path)
    assert not any("cannot be written" in line for line in make_plan(config, entries, ahead=True).warnings)
