"""Conversions onto disks that take nothing, or not all of it: one message, and nothing is left behind."""

from __future__ import annotations

import pytest
import small_disks
import tiny

from medsft.core.engine.commands.convert import convert
from medsft.core.models.conversion import Conversion
from medsft.errors import DiskError, ExitCode


def job(source, destination, to, **options):
    return Conversion(source=source, destination=destination, to=to, **options)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "model"
    return tiny.write_model(folder)


@pytest.mark.parametrize("to", ["hf", "megatron", "dcp"])
@pytest.mark.parametrize(
    ("how", "left"), [("full", 0), ("full", 40_000), ("full", 120_000), ("without inodes", 0), ("read-only", 0)]
)
def test_a_destination_that_a_disk_does_not_take(base, tmp_path, to, how, left):
    with small_disks.mounted(tmp_path / "disk", "size=2m,nr_inodes=60") as folder:
        before = sorted(folder.rglob("*"))
        begins = small_disks.spoil(folder, how, left=left)
        destination = folder / "new" / "folder"
        with pytest.raises(DiskError) as caught:
            convert(job(base, destination, to))
        assert str(caught.value).startswith(begins)
        assert str(folder / "new") in caught.value.message
        assert ".new" not in caught.value.message
        assert caught.value.exit_code == ExitCode.TRAINING
        small_disks.make_room(folder)
        assert sorted(folder.rglob("*")) == before
        assert convert(job(base, destination, to)).largest_logit_difference == 0


def test_an_iteration_beside_others_is_taken_back_alone(base, tmp_path):
    with small_disks.mounted(tmp_path / "disk", "size=4m,nr_inodes=200") as folder:
        destination = folder / "new"
        convert(job(base, destination, "megatron", as_iteration=1))
        before = {path: path.read_bytes() for path in sorted(destination.rglob("*")) if path.is_file()}
        small_disks.spoil(folder, "full", left=60_000)
        with pytest.raises(DiskError):
            convert(job(base, destination, "megatron", as_iteration=2))
        assert {path: path.read_bytes() for path in sorted(destination.rglob("*")) if path.is_file()} == before
        assert [path.name for path in destination.iterdir() if path.is_dir()] == ["iter_0000001"]
