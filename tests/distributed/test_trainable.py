"""A run that trains some of its weights: the others stay as they are, and a checkpoint holds what is trained alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader

from medsft.core.engine.nn.dtensor import local_part, local_range
from medsft.core.engine.train.build import build_trainer
from medsft.core.planning.trainable import trainable_names
from medsft.core.run.rundir import RunDir
from medsft.errors import MismatchError

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(240)]

LAYOUTS = [(1, 1, 1), (1, 2, 1), (1, 1, 2), (2, 1, 1), (2, 1, 2), (1, 2, 2), (2, 2, 1)]


def trains_attention(name: str) -> bool:
    """Matrices, norms, and one table of two: of every kind some are trained and some are not."""
    return "self_attn" in name or name == "model.norm.weight" or (name.endswith("layernorm.weight") and ".2." in name)


def trains_the_head(name: str) -> bool:
    """With a pipeline, the first stage has nothing to train."""
    return name == "lm_head.weight"


CHOICES = {"attention": trains_attention, "head": trains_the_head}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tiny.project(tmp_path_factory.mktemp("trainable"))


def train_rank(rank: tiny.Rank, choice: str = "attention") -> dict[str, tuple[tuple[int, ...], Tensor]]:
    """Train, see that frozen weights stay as they are, and return this rank's parts of what was trained."""
    trainable = {name for name in trainable_names(rank.plan.trained_model) if CHOICES[choice](name)}
    trainer = build_trainer(rank.plan, rank.run, rank.mesh, rank.events, trainable=trainable)
    masters = trainer.masters
    assert all(name in trainable for name in masters.by_name)
    assert not any(name in trainable for name in masters.frozen)
    assert len(trainer.optimizer.state) in (0, len(masters.by_name))  # not before the first step or a checkpoint
    before = {name: local_part(p).clone() for name, p in masters.frozen.items()}
    assert trainer.train()
    for name, parameter in masters.frozen.items():
        assert parameter.grad is None
        assert parameter.dtype == (torch.bfloat16 if rank.plan.precision == "bf16" else torch.float32)
        assert torch.equal(local_part(parameter), before[name])
    assert len(trainer.optimizer.state) == len(masters.by_name)
    return {name: (local_range(p)[0], local_part(p).detach()) for name, p in masters.by_name.items()}


def saved(run: RunDir, iteration: int) -> set[str]:
    keys = FileSystemReader(run.checkpoint_path(iteration)).read_metadata().state_dict_metadata
    return {key for key in keys if not key.startswith("random.")}


@pytest.fixture(scope="module")
def alone(made, tmp_path_factory):
    """Losses and norms of one process for each choice, computed once."""
    folder = tmp_path_factory.mktemp("alone")
    return {choice: tiny.in_ranks(train_rank, tiny.plan_at(made, folder, (1, 1, 1)), folder, choice)[0] for choice in CHOICES}


@pytest.mark.parametrize("layout", LAYOUTS[1:], ids=tiny.named)
@pytest.mark.parametrize("choice", CHOICES)
def test_every_layout_trains_the_same_weights(made, alone, tmp_path, layout, choice):
    found, _ = tiny.in_ranks(train_rank, tiny.plan_at(made, tmp_path, layout), tmp_path, choice)
    for one, other in zip(found, alone[choice], strict=True):
        assert one == pytest.approx(other, abs=1e-4, rel=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("layout", [(1, 1, 1), (1, 2, 1), (2, 1, 1), (1, 1, 2)], ids=tiny.named)
def test_a_resume_is_exact(made, tmp_path, layout, precision):
    plan = tiny.plan_at(made, tmp_path, layout, precision=precision)
    straight, expected = tiny.in_ranks(train_rank, plan, tmp_path)
    assert straight[-1][0] < straight[0][0]
    run = tiny.create(plan)
    names = {name for name in trainable_names(plan.trained_model) if trains_attention(name)}
    assert saved(run, 3) == {f"{part}.{name}" for part in ("model", "exp_avg", "exp_avg_sq") for name in names}
    tiny.go_back_to(run, 3)
    again, found = tiny.in_ranks(train_rank, plan, tmp_path)
    assert again == straight[3:]
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name][1], other[name][1]) for name in one)


def test_a_resume_at_another_layout(made, tmp_path):
    plan = tiny.plan_at(made, tmp_path, (1, 2, 1))
    straight, _ = tiny.in_ranks(train_rank, plan, tmp_path)
    run = tiny.create(plan)
    tiny.go_back_to(run, 3)
    config, settings = made
    other = tiny.plan_of(config, settings, tp=2, pp=2, nproc_per_node=4, save_checkpoint_dir=Path(plan.run_dir).parent)
    assert other.run_dir == plan.run_dir
    again, _ = tiny.in_ranks(train_rank, other, tmp_path)
    for one, two in zip(again, straight[3:], strict=True):
        assert one == pytest.approx(two, abs=1e-4, rel=1e-4)


def test_a_checkpoint_of_other_weights_is_refused(made, tmp_path):
    plan = tiny.plan_at(made, tmp_path, (1, 1, 1))
    tiny.in_ranks(train_rank, plan, tmp_path, "head")
    with pytest.raises(Exception, match=MismatchError.__name__) as caught:
        tiny.in_ranks(train_rank, plan, tmp_path, "attention")
    assert "holds 1 trained weights, this run trains" in str(caught.value)
