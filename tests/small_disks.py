"""Small disks on which tests run out of room, of inodes or of permission: tmpfs mounts, where root may make them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """Mount a tmpfs with these options at `folder` while the block runs. Skips the test where that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("needs to be allowed to mount a tmpfs")
    try:
        yield folder
    finally:
        while os.path.ismount(folder):  # it may be read-only on top
            subprocess.run(["umount", "-l", str(folder)], check=True)


def make_read_only(folder: Path) -> None:
    """Have nothing written below a folder any more. Files that are open stay so: a mount with such a file cannot be changed."""
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all room that is left, and return the file that holds it."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    return path


def take_inodes(folder: Path) -> Path:
    """Take all inodes that are left, and return the folder that holds them."""
    here = folder / "many"
    here.mkdir()
    try:
        for number in range(1_000_000):
            (here / str(number)).touch()
    except OSError:
        pass
    return here


def spoil(folder: Path, how: str, *, left: int = 0) -> str:
    """Have a disk take nothing any more, "full" but for `left` bytes, and return how a message about it begins."""
    if how == "without inodes":
        take_inodes(folder)
        return f"The disk is full: {folder} has no inodes left for new files ("
    if how == "read-only":
        make_read_only(folder)
        return f"The disk {folder} is read-only: "
    filler = fill(folder)
    if left:
        os.truncate(filler, filler.stat().st_size - left)
    return f"The disk is full: {folder} has "


def make_room(folder: Path) -> None:
    """Undo what the functions above did."""
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        subprocess.run(["umount", "-l", str(folder)], check=True)
    (folder / "filler").unlink(missing_ok=True)
    shutil.rmtree(folder / "many", ignore_errors=True)
