"""A run with an adapter computes the same at every layout, keeps its copies alike, and leaves its base as it is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import tiny
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.tensor import DTensor

from medsft.core.config.lora import TARGETS, TRAINED_ROWS, LoraSpec
from medsft.core.engine.nn.adapters import initial_factor
from medsft.core.engine.nn.dtensor import local_part, local_range
from medsft.core.engine.parallel.master_weights import allreduce_partial_gradients
from medsft.core.engine.parallel.mesh import open_mesh
from medsft.core.engine.train.build import build_trainer
from medsft.core.engine.train.trainer import Trainer, allreduce_tied_gradients
from medsft.core.files import sealed, unsealed
from medsft.core.models.run_folder import MANIFEST_NAME, read_manifest
from medsft.core.planning.plan import RunPlan
from medsft.core.planning.trainable import trainable_names
from medsft.core.run.events import EventReader, EventWriter
from medsft.core.run.rundir import RunDir

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(240)]

ADAPTER = {"adapter": "lora", "lora_rank": 4, "lora_alpha": 8}
LORA = LoraSpec(rank=4, alpha=8, targets=TARGETS)
LAYOUTS = [(1, 2, 1), (1, 1, 2), (2, 1, 1), (2, 2, 1), (2, 1, 2), (1, 2, 2), (1, 1, 3), (4, 1, 1)]
"""(pp, dp, tp)"""
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


def plan_at(made, folder: Path, layout, **changes) -> RunPlan:
    config, settings = made
    pp, dp, tp = layout
    # A folder of its own each time: a test that is run once more must not go on with the run that was cut short.
    where = {"save_checkpoint_dir": mkdtemp(dir=folder), "save_interval": 3, "keep_last": 0}
    return tiny.plan_of(config, settings, pp=pp, tp=tp, nproc_per_node=pp * dp * tp, **{**ADAPTER, **where, **changes})


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def first_gradients(trainer: Trainer) -> dict[str, Tensor]:
    """Gradients of the first batch, whole, with random numbers in B: with zeros there A has no gradient."""
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
    return found


def rank(number: int, plan: RunPlan, folder: str, wants_gradients: bool) -> None:
    """One rank; leaves what it found."""
    torch.set_num_threads(1)
    world = plan.layout.world
    os.environ.update(RANK=str(number), WORLD_SIZE=str(world), LOCAL_RANK=str(number))
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=number, world_size=world)
    mesh, run = open_mesh(plan.layout), RunDir(Path(plan.run_dir))
    events = EventWriter(run.events_path) if mesh.reports else None
    trainer = build_trainer(plan, run, mesh, events)
    masters = trainer.masters
    found: dict[str, Any] = {"gradients": first_gradients(trainer) if wants_gradients else {}}
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
    found["trained"] = {name: (local_range(p)[0], local_part(p).detach()) for name, p in masters.by_name.items()}
    torch.save(found, f"{folder}/rank_{number}.pt")
    dist.destroy_process_group()


def train(plan: RunPlan, folder: Path, *, gradients: bool = False):
    """Train, and return (loss and norm of each iteration, this start's alone, and what each rank found)."""
    run = tiny.create(plan)
    there = len(EventReader(run.events_path).read()) if run.events_path.exists() else 0
    (folder / "store").unlink(missing_ok=True)
    mp.start_processes(rank, (plan, str(folder), gradients), nprocs=plan.layout.world, start_method="fork")
    events = EventReader(run.events_path).read()[there:]
    parts = [torch.load(folder / f"rank_{number}.pt") for number in range(plan.layout.world)]
    return tiny.series(events, "step", "loss", "grad_norm"), parts


@pytest.fixture(scope="module")
def alone(made, tmp_path_factory):
    """What one process finds, computed once."""
    folder = tmp_path_factory.mktemp("alone")
    figures, [found] = train(plan_at(made, folder, (1, 1, 1), iters=ITERATIONS), folder, gradients=True)
    return figures, found["gradients"]


@pytest.mark.parametrize("layout", [*LAYOUTS, (2, 2, 2)], ids=lambda layout: "pp{}-dp{}-tp{}".format(*layout))
def test_every_layout_trains_the_same_adapter(made, alone, tmp_path, layout):
    figures, gradients = alone
    plan = plan_at(made, tmp_path, layout, iters=ITERATIONS)
    found, parts = train(plan, tmp_path, gradients=True)
    seen = set()
    for part in parts:
        for name, gradient in part["gradients"].items():
            difference, expected = gradient - gradients[name], gradients[name]
            assert difference.norm() <= 3e-6 * expected.norm(), name
            seen.add(name)
    assert seen == gradients.keys() == trainable_names(plan.trained_model, LORA, len(NEW_ROWS))
    copies: dict[tuple[str, tuple[int, ...]], Tensor] = {}
    for part in parts:
        for name, (starts, values) in part["trained"].items():
            assert torch.equal(copies.setdefault((name, starts), values), values)
    for (loss, norm), (expected, expected_norm) in zip(found, figures, strict=True):
        assert loss == pytest.approx(expected, abs=1e-4, rel=1e-4)
        assert norm == pytest.approx(expected_norm, rel=1e-3)  # updates make differences in the last digit grow


def test_the_first_loss_is_the_base_models(made, tmp_path):
    plan = plan_at(made, tmp_path, (1, 1, 1), iters=1)
    [(loss, _)], _ = train(plan, tmp_path)
    config, settings = made
    full = tiny.plan_of(config, settings, iters=1, save_checkpoint_dir=tmp_path / "full")
    [(expected, _)] = tiny.series(tiny.train(full), "step", "loss", "grad_norm")
    assert loss == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("layout", [(1, 1, 1), (1, 2, 1), (2, 1, 1), (1, 1, 2)], ids=str)
def test_a_resume_is_exact(made, tmp_path, layout, precision):
    plan = plan_at(made, tmp_path, layout, precision=precision)
    straight, expected = train(plan, tmp_path)
    assert straight[-1][0] < straight[0][0]
    run = tiny.create(plan)
    keys = FileSystemReader(run.checkpoint_path(3)).read_metadata().state_dict_metadata
    names = trainable_names(plan.trained_model, LORA, len(NEW_ROWS))
    wanted = {f"{part}.{name}" for part in ("model", "exp_avg", "exp_avg_sq") for name in names}
    assert {key for key in keys if not key.startswith("random.")} == wanted
    record = read_manifest(run.checkpoint_path(3))["adapter"]
    assert record["rank"] == 4
    assert record["trained rows"] == list(NEW_ROWS)
    assert record["base model"] == plan.base.fingerprint
    tiny.go_back_to(run, 3)
    again, found = train(plan, tmp_path)
    assert again == straight[3:]
    for one, other in zip(found, expected, strict=True):
        assert one["trained"].keys() == other["trained"].keys()
        assert all(torch.equal(values, other["trained"][name][1]) for name, (_, values) in one["trained"].items())


def test_a_resume_at_other_layouts(made, tmp_path):
    plan = plan_at(made, tmp_path, (1, 1, 2), iters=9)
    straight, _ = train(plan, tmp_path)
    runs = Path(plan.run_dir).parent
    for iteration, layout in ((3, (2, 1, 1)), (6, (1, 2, 1))):
        tiny.go_back_to(tiny.create(plan), iteration)
        other = plan_at(made, tmp_path, layout, iters=9, save_checkpoint_dir=runs)
        assert other.run_dir == plan.run_dir
        again, _ = train(other, tmp_path)
        for one, two in zip(again, straight[iteration:], strict=True):
            assert one == pytest.approx(two, abs=1e-4, rel=1e-4)


def test_a_checkpoint_of_another_adapter_is_refused(made, tmp_path):
    """The plan's identity refuses before that; this is of a checkpoint that was put into the folder of another run."""
    plan, other = (plan_at(made, tmp_path, (1, 1, 1), iters=1, lora_rank=rank) for rank in (4, 2))
    train(plan, tmp_path)
    saved, copy = tiny.create(plan).checkpoint_path(1), tiny.create(other).checkpoint_path(1)
    shutil.copytree(saved, copy)
    manifest = unsealed((copy / MANIFEST_NAME).read_bytes())
    (copy / MANIFEST_NAME).write_text(sealed({**manifest, "identity": other.identity}))
    with pytest.raises(Exception, match="another adapter than this run trains"):
        train(other, tmp_path)
