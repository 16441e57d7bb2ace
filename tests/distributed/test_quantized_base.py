"""An adapter on a base model in nf4 trains the same at every layout, and as on the numbers that nf4 means."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from medsft.core.engine.formats.hf import open_hf, write_hf
from medsft.core.engine.formats.quantized import QuantizedSource
from medsft.core.engine.nn.dtensor import local_part
from medsft.core.engine.nn.quantized import in_format
from medsft.core.engine.train.base_weights import base_source
from medsft.core.engine.train.build import build_trainer
from medsft.core.planning.plan import RunPlan

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(240)]

QLORA: dict[str, Any] = {"adapter": "lora", "lora_rank": 4, "lora_alpha": 8, "base_precision": "nf4", "iters": 5, "lr": 1e-2}
LAYOUTS = [(1, 2, 1), (1, 1, 2), (2, 1, 1), (2, 2, 1), (1, 2, 2), (1, 1, 3)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Rows longer than a block, of which a half or a third is not whole blocks; heads divide by 2 and by 3."""
    return tiny.project(
        tmp_path_factory.mktemp("quantized"),
        hidden_size=102,
        head_dim=18,
        num_attention_heads=6,
        num_key_value_heads=6,
        intermediate_size=150,
    )


def plan_at(made, folder: Path, layout, **changes) -> RunPlan:
    return tiny.plan_at(made, folder, layout, **{**QLORA, **changes})


def train_rank(rank: tiny.Rank) -> int:
    """Train, and return the bytes that are held in nf4.

    Before and after, this rank's part of each frozen matrix is what the source of merging says.
    """
    plan = rank.plan
    trainer = build_trainer(plan, rank.run, rank.mesh, rank.events)
    weights = trainer.masters.quantized
    source = QuantizedSource(base_source(plan)[0])
    assert len(weights) == 7 * plan.trained_model.num_layers / plan.layout.pp

    def check() -> None:
        if plan.layout.dp > 1:
            return  # each rank has a share of the codes; the losses tell whether they are right together
        for name, weight in weights.items():
            rows, columns = (slice(part.start, part.stop) for part in (weight.part.rows, weight.part.columns))
            assert torch.equal(in_format(weight, torch.float32), source.read(name, (rows, columns))), name

    check()
    assert trainer.train()
    check()
    for weight in weights.values():
        assert [p.dtype for p in weight.parameters()] == [torch.uint8, torch.int8, torch.float32]
    return sum(local_part(p).nbytes for weight in weights.values() for p in weight.parameters())


@pytest.fixture(scope="module")
def alone(made, tmp_path_factory):
    """What one process finds, computed once."""
    folder = tmp_path_factory.mktemp("alone")
    return tiny.in_ranks(train_rank, plan_at(made, folder, (1, 1, 1)), folder)


@pytest.mark.parametrize("layout", LAYOUTS, ids=tiny.named)
def test_every_layout_trains_the_same_adapter(made, alone, tmp_path, layout):
    figures, [whole] = alone
    found, held = tiny.in_ranks(train_rank, plan_at(made, tmp_path, layout), tmp_path)
    for one, other in zip(found, figures, strict=True):
        assert one == pytest.approx(other, abs=1e-4, rel=1e-4)
    assert max(held) <= 1.15 * whole / len(held)


def test_the_numbers_that_are_trained_on(made, alone, tmp_path):
    """A run in fp32 on a base model that is written with them has the same losses, bit for bit."""
    base = Path(tiny.plan_of(*made).base.path)
    shutil.copytree(base.parent, tmp_path / "written", ignore=shutil.ignore_patterns("runs", "tokenized"))
    source = open_hf(base)
    shutil.rmtree(tmp_path / "written/base")
    quantized = QuantizedSource(source)
    weights = ((name, quantized.read(name)) for name in quantized.names())
    write_hf(tmp_path / "written/base", source.config, weights, dtype=torch.float32)
    tiny.write_tokenizer(tmp_path / "written/base")
    other = tiny.config_in(tmp_path / "written")
    plan = tiny.plan_of(other[0], other[1], **{**QLORA, "base_precision": "fp32"})
    assert tiny.series(tiny.train(plan), "step", "loss", "grad_norm") == alone[0]


@pytest.mark.parametrize("layout", [(1, 1, 1), (1, 2, 1)], ids=tiny.named)
def test_a_resume_is_exact_in_bf16(made, tmp_path, layout):
    plan = plan_at(made, tmp_path, layout, precision="bf16")
    straight, _ = tiny.in_ranks(train_rank, plan, tmp_path)
    tiny.go_back_to(tiny.create(plan), 3)
    again, _ = tiny.in_ranks(train_rank, plan, tmp_path)
    assert again == straight[3:]


@pytest.mark.parametrize(("base", "precision"), [("bf16", "fp32"), ("fp32", "bf16")])
def test_a_base_in_another_format_than_that_of_computing(made, tmp_path, base, precision):
    one, two = (
        tiny.series(
            tiny.train(plan_at(made, tmp_path, layout, base_precision=base, precision=precision)), "step", "loss", "grad_norm"
        )
        for layout in [(1, 1, 1), (1, 2, 1)]
    )
    for first, second in zip(one, two, strict=True):
        assert first == pytest.approx(second, abs=1e-4 if precision == "fp32" else 2e-2, rel=1e-3)
    assert one[-1][0] < one[0][0]
