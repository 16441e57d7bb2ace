"""Runs with `--optimizer adamw8bit`: they learn as with AdamW, go on bit for bit, and change their layout."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from checkpoints import assert_goes_on_bit_for_bit, tensors_of

from medsft.core.engine.formats.dcp import open_dcp

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(480)]

LAYOUTS = {"fp32": [(1, 1, 2), (1, 2, 1)], "bf16": [(1, 1, 1), (1, 1, 2), (1, 2, 1), (2, 1, 2), (1, 2, 2)]}
"""(pp, dp, tp), each of which takes up the run of the one before."""
EXACT = [((1, 1, 1), "fp32"), ((1, 1, 2), "bf16"), ((1, 2, 1), "bf16"), ((2, 1, 1), "bf16")]
NEAR = {"fp32": 2e-2, "bf16": 0.1}
"""By how much losses of other layouts may differ: with gradients of other last digits a code of a moment, or a rounded weight,
is another here and there."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project with a tied model."""
    return tiny.project(tmp_path_factory.mktemp("adamw8bit"), tie_word_embeddings=True)


def plan_at(made, runs, layout=(1, 1, 1), **changes):
    config, settings = made
    pp, dp, tp = layout
    where = {"save_checkpoint_dir": runs, "save_interval": 3, "keep_last": 0, "keep_best": "none", "eval_interval": 100}
    options = {**where, "optimizer": "adamw8bit", "precision": "bf16", **changes}
    return tiny.plan_of(config, settings, pp=pp, tp=tp, nproc_per_node=pp * dp * tp, **options)


def steps(events):
    return tiny.series(events, "step", "loss", "grad_norm")


@pytest.mark.parametrize(("precision", "mean"), [("fp32", 0.03), ("bf16", 0.06)])
def test_the_losses_are_those_of_adamw(made, tmp_path, precision, mean):
    """Over 50 iterations that bring the loss down by a quarter and more. In bf16 the weights are rounded, too."""
    curves = []
    for kind in ("adamw", "adamw8bit"):
        plan = plan_at(made, tmp_path / kind, optimizer=kind, precision=precision, iters=50, save_interval=100)
        curves.append([loss for loss, _ in steps(tiny.train(plan))])
    exact, found = (torch.tensor(curve) for curve in curves)
    assert exact[-5:].mean() < 0.75 * exact[0]
    assert found[0] == exact[0]
    assert (found - exact).abs().max() < 0.12
    assert (found - exact).abs().mean() < mean


@pytest.mark.parametrize(("layout", "precision"), EXACT, ids=str)
def test_the_same_layout_goes_on_bit_for_bit(made, tmp_path, layout, precision):
    assert_goes_on_bit_for_bit(plan_at(made, tmp_path, layout, precision=precision))


@pytest.mark.parametrize("layout", [(1, 1, 1), (1, 2, 1), (1, 1, 2)], ids=str)
def test_an_adapter_goes_on_bit_for_bit(made, tmp_path, layout):
    assert_goes_on_bit_for_bit(plan_at(made, tmp_path, layout, adapter="lora", lora_rank=4))


@pytest.mark.parametrize("precision", LAYOUTS)
def test_other_layouts(made, tmp_path, precision):
    """Each layout trains as one process does, and takes up the run of the one before."""
    alone = steps(tiny.train(plan_at(made, tmp_path / "alone", precision=precision)))
    before = None
    for layout in LAYOUTS[precision]:
        plan = plan_at(made, tmp_path / "run", layout, precision=precision)
        if before is not None:
            tiny.go_back_to(tiny.create(plan), 3)
        found = steps(tiny.train(plan))[-3:]
        for (loss, _), (expected, _) in zip(found, alone[3:], strict=True):
            assert loss == pytest.approx(expected, abs=NEAR[precision]), (before, layout)
        before = layout


def test_what_a_checkpoint_holds(made, tmp_path):
    """Weights in bf16, a byte for each number of a moment of a matrix, scales; and it is read as moments by other programs."""
    plan = plan_at(made, tmp_path, (1, 1, 2))
    tiny.train(plan)
    run = tiny.create(plan)
    found, path = tensors_of(run, 6), run.checkpoint_path(6)
    assert json.loads((path / "config.json").read_text())["dtype"] == "bfloat16"
    name = "model.layers.0.mlp.down_proj.weight"
    assert found[f"model.{name}"].dtype == torch.bfloat16
    assert found[f"exp_avg.{name}"].dtype == torch.uint8
    assert tuple(found[f"exp_avg_scale.{name}"].shape) == (32, 2, 1)
    assert found["exp_avg.model.norm.weight"].dtype == torch.float32
    assert "exp_avg_scale.model.norm.weight" not in found
    for moment in ("exp_avg", "exp_avg_sq"):
        source = open_dcp(path, moment)
        assert source.dtype(name) == torch.float32
        read = source.read(name)
        largest = found[f"{moment}_scale.{name}"][:, :, 0].abs()
        assert torch.equal(read.view(32, 2, 24).abs().amax(-1), largest)
        assert largest.min() > 0
    size = sum(tensor.nbytes for tensor in found.values())
    assert size < 0.5 * 12 * plan.base.model.num_parameters()


def test_another_optimizer_is_another_run(made, tmp_path):
    one, other = plan_at(made, tmp_path), plan_at(made, tmp_path, optimizer="adamw")
    assert one.run_dir == other.run_dir
    assert one.identity != other.identity
