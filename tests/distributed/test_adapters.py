"""A run with an adapter computes the same at every layout, keeps its copies alike, and leaves its base as it is."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.tensor import DTensor

from medsft.core.config.lora import TARGETS, TRAINED_ROWS, LoraSpec
from medsft.core.engine.formats.source import DTYPES
from medsft.core.engine.nn.adapters import initial_factor
from medsft.core.engine.nn.dtensor import local_part, local_range
from medsft.core.engine.parallel.master_weights import allreduce_partial_gradients
from medsft.core.engine.train.build import build_trainer
from medsft.core.engine.train.trainer import Trainer, allreduce_tied_gradients
from medsft.core.files import sealed, unsealed
from medsft.core.models.run_folder import MANIFEST_NAME, read_manifest
from medsft.core.planning.plan import RunPlan
from medsft.core.planning.trainable import trainable_names
from medsft.core.run.rundir import RunDir

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(280)]

ADAPTER = {"adapter": "lora", "lora_rank": 4, "lora_alpha": 8}
LORA = LoraSpec(rank=4, alpha=8, targets=TARGETS)
LAYOUTS = [(1, 2, 1), (1, 1, 2), (2, 1, 1), (2, 2, 1), (2, 1, 2), (1, 2, 2), (1, 1, 3), (4, 1, 1)]
ITERATIONS = 20
NEW_ROWS = (84, 85)
"""The template's own tokens, which the base model does not have."""


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def made(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    # Heads that divide by 2 and by 3.
    return tiny.project(
        folder,
        hidden_size=48,
        num_attention_heads=6,
        num_key_value_heads=6,
        intermediate_size=60,
        tie_word_embeddings=request.param,
    )


def plan_at(made, folder: Path, layout: tiny.Layout, **changes: Any) -> RunPlan:
    return tiny.plan_at(made, folder, layout, **{**ADAPTER, **changes})


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def first_gradients(trainer: Trainer) -> dict[str, Tensor]:
    """Gradients of the first batch, whole, with random numbers in B for it: with zeros there A has no gradient."""
    zeros = [local_part(master.data) for name, master in trainer.masters.by_name.items() if ".lora_B." in name]
    for name, master in trainer.masters.by_name.items():
        if ".lora_B." in name:
            starts, sizes = local_range(master)
            numbers = initial_factor(name.replace("lora_B", "lora_A"), tuple(master.shape), 1)
            local_part(master.data).copy_(numbers[tuple(slice(s, s + n) for s, n in zip(starts, sizes, strict=True))])
    trainer.masters.copy_to_compute()
    batch = trainer.train_batches.batch(0)
    trainer.executor.train(batch, trainer._scales(batch))
    allreduce_partial_gradients(trainer.masters, trainer.mesh)
    allreduce_tied_gradients(trainer.masters, trainer.mesh, tied=trainer.plan.base.model.tie_embeddings)
    found = {}
    for name, master in trainer.masters.by_name.items():
        assert master.grad is not None, name
        found[name] = whole(master.grad)
    trainer.masters.zero_grad()
    for part in zeros:
        part.zero_()
    trainer.masters.copy_to_compute()
    return found


def precise_gradients(rank: tiny.Rank) -> dict[str, Tensor]:
    """Gradients of the first batch, computed in fp64; the softmax, sums over ranks and the result are in fp32."""
    DTYPES["fp64"] = torch.float64
    return first_gradients(build_trainer(replace(rank.plan, precision="fp64"), rank.run, rank.mesh, None))


def train_rank(rank: tiny.Rank, wants_gradients: bool = False) -> dict[str, Any]:
    """Train, and return the first gradients if they are wanted, and this rank's parts of what was trained."""
    plan = rank.plan
    trainer = build_trainer(plan, rank.run, rank.mesh, rank.events)
    masters = trainer.masters
    gradients = [precise_gradients(rank), first_gradients(trainer)] if wants_gradients else []
    before = {name: local_part(p).clone() for name, p in masters.frozen.items()}
    assert trainer.train()
    names = trainable_names(plan.trained_model, LORA, len(NEW_ROWS))
    assert set(masters.by_name) <= names
    assert not any(name in names for name in masters.frozen)
    for name, parameter in masters.frozen.items():
        assert parameter.grad is None
        assert not parameter.requires_grad
        assert parameter.dtype == (torch.bfloat16 if plan.precision == "bf16" else torch.float32)
        now, then = local_part(parameter), before[name]
        if name in TRAINED_ROWS:
            (first, *_), (count, *_) = local_range(parameter)
            own = [row - first for row in NEW_ROWS if first <= row < first + count]
            trained = local_part(masters.by_name[TRAINED_ROWS[name]])[[NEW_ROWS.index(row + first) for row in own]]
            assert torch.equal(now[own], trained.to(now.dtype))
            then[own] = now[own]
        assert torch.equal(now, then)
    return {
        "gradients": gradients,
        "trained": {name: (local_range(p)[0], local_part(p).detach()) for name, p in masters.by_name.items()},
    }


@pytest.fixture(scope="module")
def trained(made, tmp_path_factory):
    """Return by a layout (plan, losses and norms, what each rank found) of a training there, done once for all tests."""
    done: dict[tiny.Layout, Any] = {}

    def train_at(layout: tiny.Layout = (1, 1, 1)):
        if layout not in done:
            folder = tmp_path_factory.mktemp("trained")
            plan = plan_at(made, folder, layout, iters=ITERATIONS)
            done[layout] = plan, *tiny.in_ranks(train_rank, plan, folder, True)
        return done[layout]

    return train_at


def copied(plan: RunPlan, folder: Path, iteration: int) -> RunPlan:
    """The plan of a copy of a run, which is as it was when the checkpoint of this iteration was its latest."""
    copy = Path(mkdtemp(dir=folder)) / Path(plan.run_dir).name
    shutil.copytree(plan.run_dir, copy)
    tiny.go_back_to(RunDir(copy), iteration)
    return replace(plan, run_dir=str(copy))


@pytest.mark.parametrize("layout", [*LAYOUTS, (2, 2, 2)], ids=tiny.named)
def test_every_layout_trains_the_same_adapter(trained, layout):
    _, figures, [alone] = trained()
    plan, found, parts = trained(layout)
    seen = set[str]()
    for part in parts:
        # What is left of the difference in fp64 is what the sums over ranks round; the rest is rounding of products.
        for tolerance, found_here, expected_here in zip((5e-7, 3e-6), part["gradients"], alone["gradients"], strict=True):
            for name, gradient in found_here.items():
                expected = expected_here[name]
                assert (gradient - expected).norm() <= tolerance * expected.norm(), (name, tolerance)
            seen |= found_here.keys()
    assert seen == alone["gradients"][0].keys() == trainable_names(plan.trained_model, LORA, len(NEW_ROWS))
    copies: dict[tuple[str, tuple[int, ...]], Tensor] = {}
    for part in parts:
        for name, (starts, values) in part["trained"].items():
            assert torch.equal(copies.setdefault((name, starts), values), values)
    for (loss, norm), (expected_loss, expected_norm) in zip(found, figures, strict=True):
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        assert norm == pytest.approx(expected_norm, rel=1e-4)


def test_the_first_loss_is_the_base_models(made, tmp_path):
    [(loss, _)], _ = tiny.in_ranks(train_rank, plan_at(made, tmp_path, (1, 1, 1), iters=1), tmp_path)
    config, settings = made
    full = tiny.plan_of(config, settings, iters=1, save_checkpoint_dir=tmp_path / "full")
    [(expected, _)] = tiny.series(tiny.train(full), "step", "loss", "grad_norm")
    assert loss == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("layout", [(1, 1, 1), (1, 2, 1), (2, 1, 1), (1, 1, 2)], ids=tiny.named)
def test_a_resume_is_exact(made, trained, tmp_path, layout, precision):
    if precision == "fp32":
        plan, straight, expected = trained(layout)
    else:
        plan = plan_at(made, tmp_path, layout, precision=precision)
        straight, expected = tiny.in_ranks(train_rank, plan, tmp_path)
    assert straight[-1][0] < straight[0][0]
    saved = RunDir(Path(plan.run_dir)).checkpoint_path(3)
    keys = FileSystemReader(saved).read_metadata().state_dict_metadata
    names = trainable_names(plan.trained_model, LORA, len(NEW_ROWS))
    wanted = {f"{part}.{name}" for part in ("model", "exp_avg", "exp_avg_sq") for name in names}
    assert {key for key in keys if not key.startswith("random.")} == wanted
    record = read_manifest(saved)["adapter"]
    assert record["rank"] == 4
    assert record["trained rows"] == list(NEW_ROWS)
    assert record["base model"] == plan.base.fingerprint
    iteration = 15 if precision == "fp32" else 3
    again, found = tiny.in_ranks(train_rank, copied(plan, tmp_path, iteration), tmp_path)
    assert again == straight[iteration:]
    for one, other in zip(found, expected, strict=True):
        assert one["trained"].keys() == other["trained"].keys()
        assert all(torch.equal(values, other["trained"][name][1]) for name, (_, values) in one["trained"].items())


def test_a_resume_at_other_layouts(made, trained, tmp_path):
    plan, straight, _ = trained((1, 1, 2))
    plan = copied(plan, tmp_path, 12)
    for iteration, layout in ((12, (2, 1, 1)), (15, (1, 2, 1))):
        tiny.go_back_to(RunDir(Path(plan.run_dir)), iteration)
        other = plan_at(made, tmp_path, layout, iters=ITERATIONS, save_checkpoint_dir=Path(plan.run_dir).parent)
        assert other.run_dir == plan.run_dir
        again, _ = tiny.in_ranks(train_rank, other, tmp_path)
        for one, two in zip(again, straight[iteration:], strict=True):
            assert one == pytest.approx(two, abs=1e-4, rel=1e-4)


def test_a_checkpoint_of_another_adapter_is_refused(made, tmp_path):
    """The plan's identity refuses before that; this is of a checkpoint that was put into the folder of another run."""
    plan, other = (plan_at(made, tmp_path, (1, 1, 1), iters=1, lora_rank=rank) for rank in (4, 2))
    tiny.in_ranks(train_rank, plan, tmp_path)
    saved, copy = tiny.create(plan).checkpoint_path(1), tiny.create(other).checkpoint_path(1)
    shutil.copytree(saved, copy)
    manifest = unsealed((copy / MANIFEST_NAME).read_bytes())
    (copy / MANIFEST_NAME).write_text(sealed({**manifest, "identity": other.identity}))
    with pytest.raises(Exception, match="another adapter than this run trains"):
        tiny.in_ranks(train_rank, other, tmp_path)
