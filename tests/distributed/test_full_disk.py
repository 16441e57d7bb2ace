"""Training on disks that fill up, run out of inodes or turn read-only, and what a resume makes of it."""

from __future__ import annotations

import os
import signal
import subprocess

import live
import pytest
import small_disks
import tiny

from medsft.core.engine.train import async_save
from medsft.core.run import integrity
from medsft.core.run.events import EventReader
from medsft.core.run.launch import EngineError, run_engine, start
from medsft.errors import ExitCode

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tiny.project(tmp_path_factory.mktemp("disk"))


def plan_on(made, runs, layout=(1, 1, 1), **changes):
    config, settings = made
    pp, dp, tp = layout
    where = {"save_checkpoint_dir": runs, "save_interval": 3, "keep_last": 0, "keep_best": "none", "iters": 9}
    return tiny.plan_of(config, settings, pp=pp, tp=tp, nproc_per_node=pp * dp * tp, **{**where, **changes})


def steps(events):
    return tiny.series(events, "step", "iteration", "loss", "grad_norm")


@pytest.mark.parametrize("how", ["full", "nearly full", "without inodes", "read-only"])
@pytest.mark.parametrize("layout", [(1, 1, 1), (1, 2, 1)], ids=str)
def test_a_checkpoint_that_a_disk_does_not_take(made, tmp_path, monkeypatch, capfd, layout, how):
    """Nothing is simulated but the moment: the disk is spoilt when the second checkpoint begins."""
    straight = steps(tiny.train(plan_on(made, tmp_path / "roomy", layout)))
    with small_disks.mounted(tmp_path / "disk", "size=8m,nr_inodes=200") as folder:
        plan = plan_on(made, folder, layout)
        run = tiny.create(plan)
        begin = async_save.Saver.begin

        def spoil_first(saver, state):
            if state.iteration == 6 and saver._mesh.reports:
                if how == "read-only":
                    small_disks.make_read_only(folder)
                elif how == "without inodes":
                    small_disks.take_inodes(folder)
                else:
                    filler = small_disks.fill(folder)
                    if how == "nearly full":
                        with filler.open("r+b") as file:
                            file.truncate(filler.stat().st_size - 60_000)
            return begin(saver, state)

        monkeypatch.setattr(async_save.Saver, "begin", spoil_first)
        with pytest.raises(Exception, match="exit code 6"):
            tiny.train(plan)
        monkeypatch.undo()
        message = capfd.readouterr().err
        assert "The checkpoint of iteration 6 could not be saved. The disk " in message
        assert str(folder) in message
        assert "kept: iteration 3" in message
        small_disks.make_room(folder)
        assert run.checkpoints() == [3]
        assert run.latest_checkpoint() == 3
        assert integrity.damage(run.checkpoint_path(3)) is None
        assert how == "read-only" or not list(run.path.glob(".iter_*"))
        before = len(steps(EventReader(run.events_path).read()))
        assert steps(tiny.train(plan))[before:] == straight[3:]
        assert not list(run.path.glob(".iter_*"))


@pytest.mark.parametrize("how", ["full", "without inodes", "read-only"])
def test_an_export_that_a_disk_does_not_take(made, tmp_path, how):
    plan = plan_on(made, tmp_path / "roomy")
    run = tiny.create(plan)
    tiny.train(plan)
    with small_disks.mounted(tmp_path / "disk", "size=2m,nr_inodes=60") as folder:
        before = sorted(folder.rglob("*"))
        begins = small_disks.spoil(folder, how)
        with pytest.raises(EngineError) as caught:
            run_engine("export", [str(run.path), "--to", str(folder / "new" / "model")])
        assert str(caught.value).startswith(begins)
        assert str(folder / "new") in str(caught.value)
        assert caught.value.exit_code == ExitCode.TRAINING
        small_disks.make_room(folder)
        assert sorted(folder.rglob("*")) == before
        run_engine("export", [str(run.path), "--to", str(folder / "new" / "model")])
        assert integrity.export_damage(folder / "new" / "model") is None


def test_a_stop_for_which_there_is_no_room(made, tmp_path):
    """The supervisor cannot write the request down, and passes the signal on."""
    with small_disks.mounted(tmp_path / "disk", "size=16m,nr_inodes=200") as folder:
        run = start(plan_on(made, folder, iters=100_000, save_interval=100_000))
        live.wait_for_steps(run, 1)
        small_disks.take_inodes(folder)
        os.kill(live.supervisor_of(run), signal.SIGTERM)
        assert live.wait_for_end(run) == "failed"
        view = run.view()
        assert view.exit_code == ExitCode.TRAINING
        # No rank could leave a word, so the supervisor has asked the disk.
        assert view.reason.startswith(f"The disk is full: {folder} has no inodes left for new files")
        assert view.reason.endswith(f"; {run.path} cannot be written.")
        assert view.iteration < 100_000
        live.assert_nothing_survives(run)


def test_a_stop_that_finds_room_only_for_a_checkpoint(made, tmp_path):
    with small_disks.mounted(tmp_path / "disk", "size=16m,nr_inodes=200") as folder:
        run = start(plan_on(made, folder, iters=100_000, save_interval=100_000))
        live.wait_for_steps(run, 1)
        small_disks.make_read_only(run.control)  # stands for what keeps the request from being written
        os.kill(live.supervisor_of(run), signal.SIGTERM)
        assert live.wait_for_end(run) == "stopped"
        assert run.latest_checkpoint() == run.view().iteration
        subprocess.run(["umount", "-l", str(run.control)], check=True)
