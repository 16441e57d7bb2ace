"""A run goes on exactly where its checkpoint is, at the same layout bit for bit, at another within rounding."""

from __future__ import annotations

import errno
from itertools import pairwise

import pytest
import tiny
from checkpoints import assert_goes_on_bit_for_bit

from medsft.core.engine.train import async_save
from medsft.core.run import integrity

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(240)]

LAYOUTS = [(1, 1, 1), (2, 1, 1), (1, 1, 2), (1, 2, 1), (2, 2, 1), (1, 2, 2), (4, 1, 1), (2, 1, 2), (1, 4, 1)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project with a tied model."""
    folder = tmp_path_factory.mktemp("resume")
    return tiny.project(folder, tie_word_embeddings=True)


def plan_at(made, runs, layout, **changes):
    config, settings = made
    pp, dp, tp = layout
    where = {"save_checkpoint_dir": runs, "save_interval": 3, "keep_last": 0, "keep_best": "none"}
    return tiny.plan_of(config, settings, pp=pp, tp=tp, nproc_per_node=pp * dp * tp, **where, **changes)


def steps(events):
    return tiny.series(events, "step", "iteration", "loss", "grad_norm")


@pytest.mark.parametrize(("before", "after"), [*pairwise(LAYOUTS), (LAYOUTS[-1], LAYOUTS[0])], ids=str)
def test_another_layout(made, tmp_path, before, after):
    plan = plan_at(made, tmp_path, before)
    straight = steps(tiny.train(plan))
    run = tiny.create(plan)
    tiny.go_back_to(run, 3)
    other = plan_at(made, tmp_path, after)
    assert other.run_dir == plan.run_dir
    again = steps(tiny.train(other))[len(straight) :]
    assert [step[0] for step in again] == [4, 5, 6]
    for one, two in zip(again, straight[3:], strict=True):
        assert one == pytest.approx(two, abs=1e-4, rel=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("layout", [(1, 1, 1), (1, 2, 1), (2, 1, 1)], ids=str)
def test_the_same_layout_bit_for_bit(made, tmp_path, layout, precision):
    assert_goes_on_bit_for_bit(plan_at(made, tmp_path, layout, precision=precision))


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(made, tmp_path):
    plan = plan_at(made, tmp_path, (1, 1, 1))
    straight = steps(tiny.train(plan))
    run = tiny.create(plan)
    shard = next(run.checkpoint_path(6).glob("*.distcp"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    events = tiny.train(plan)
    assert steps(events)[len(straight) :] == straight[3:]
    (warning,) = [event.data["message"] for event in events if event.kind == "warning"]
    assert "iter_0000006 is damaged" in warning
    assert shard.name in warning


def test_a_full_disk_keeps_the_last_checkpoint(made, tmp_path, monkeypatch, capfd):
    plan = plan_at(made, tmp_path, (1, 2, 1), iters=9)
    run = tiny.create(plan)
    save = async_save.dcp.save

    def fails_later(*args, **kwargs):
        if run.checkpoint_path(3).exists():
            raise OSError(errno.ENOSPC, "No space left on device", str(run.path))
        return save(*args, **kwargs)

    monkeypatch.setattr(async_save.dcp, "save", fails_later)
    with pytest.raises(Exception, match="exit code 6"):
        tiny.train(plan)
    assert "The checkpoint of iteration 6 could not be saved. The disk is full: " in capfd.readouterr().err
    assert run.checkpoints() == [3]
    assert run.latest_checkpoint() == 3
    assert integrity.damage(run.checkpoint_path(3)) is None
    assert not list(run.path.glob(".iter_*"))


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched(tmp_path, capfd):
    config, settings = tiny.project(tmp_path)
    from safetensors.torch import load_file, save_file

    weights = load_file(tmp_path / "base" / "model.safetensors")
    weights["lm_head.weight"][:] = 3e38  # finite, as the weights of a base model must be; what they give is not
    save_file(weights, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    plan = tiny.plan_of(config, settings, save_interval=1)
    with pytest.raises(Exception, match="exit code 6"):
        tiny.train(plan)
    message = capfd.readouterr().err
    assert "The loss is nan in iteration 1; the weights were not touched. Documents" in message
    assert tiny.create(plan).checkpoints() == []
