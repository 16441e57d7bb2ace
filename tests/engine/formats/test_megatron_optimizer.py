"""The optimizer's state in a Megatron-LLM folder, in the order and shapes of the original's modules."""

from __future__ import annotations

import random
from pathlib import Path

import megatron_formulas as formulas
import numpy as np
import pytest
import tiny
import torch

from medsft.core.engine.commands.convert import convert
from medsft.core.engine.formats.megatron import open_megatron, write_megatron
from medsft.core.engine.formats.megatron.optimizer import OptimizerState
from medsft.core.engine.formats.open import open_source
from medsft.core.models.config import ModelConfig
from medsft.core.models.conversion import Conversion
from medsft.core.run.rundir import RunDir

SIZES = formulas.SIZES
CONFIG = ModelConfig(family="llama", **SIZES, norm_eps=1e-5, rope_theta=1e4, max_position_embeddings=64, tie_embeddings=False)


TENSORS = {name: formulas.random_weights(SIZES, seed) for seed, name in ((1, "exp_avg"), (2, "exp_avg_sq"), (3, "master"))}
STATE = OptimizerState(
    sources={name: formulas.InMemory(weights, CONFIG) for name, weights in TENSORS.items()},
    step=4,
    lr=1.5e-5,
    max_lr=2e-5,
    min_lr=2e-6,
    warmup_samples=6.4,
    decay_samples=64,
    samples=32,
    decay_style="cosine",
    weight_decay=0.1,
    betas=(0.9, 0.95),
    eps=1e-5,
)


def in_module_order(language):
    """Split a rank's tensors into the two groups of the original: matrices, lm_head first; then vectors."""
    tensors = [language["lm_head"]] if "lm_head" in language else []
    tensors += [language["embedding"]["word_embeddings"]["weight"]] if "embedding" in language else []
    tensors += language["encoder"].values()
    return [t for t in tensors if t.dim() == 2], [t for t in tensors if t.dim() == 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 2)])
def test_states_against_the_formulas(tp, pp, dtype, tmp_path):
    source = formulas.InMemory(formulas.random_weights(SIZES), CONFIG)
    options = {"tp": tp, "pp": pp, "dtype": dtype, "iteration": 4, "vocab_divisible_by": 16}
    folder = write_megatron(tmp_path / "m", source, optimizer=STATE, training_args={"consumed_train_samples": 32}, **options)
    for t in range(tp):
        for p in range(pp):
            rank = f"mp_rank_{t:02d}" + (f"_{p:03d}" if pp > 1 else "")
            content = torch.load(folder / rank / "model_optim_rng.pt", weights_only=False)
            layers = range(p * 4 // pp, (p + 1) * 4 // pp)
            expected = {
                name: in_module_order(formulas.rank_model(weights, SIZES, layers, t, tp, "trainer")["language_model"])
                for name, weights in TENSORS.items()
            }
            adam = content["optimizer"] if dtype == torch.float32 else content["optimizer"]["optimizer"]
            first, second = adam["param_groups"]
            assert [*first["params"], *second["params"]] == list(range(sum(map(len, expected["master"]))))
            assert (first["weight_decay"], second["weight_decay"], first["step"]) == (0.1, 0.0, 4)
            for name in ("exp_avg", "exp_avg_sq"):
                wanted = [tensor for group in expected[name] for tensor in group]
                found = [adam["state"][number][name] for number in range(len(wanted))]
                torch.testing.assert_close(found, wanted, atol=0, rtol=0)
            if dtype == torch.bfloat16:
                torch.testing.assert_close(
                    content["optimizer"]["fp32_from_fp16_params"], list(expected["master"]), atol=0, rtol=0
                )
            assert content["opt_param_scheduler"]["num_steps"] == content["args"].consumed_train_samples == 32
    for name, weight in source.weights.items():
        assert torch.equal(open_megatron(tmp_path / "m").read(name), weight.to(dtype))


def test_random_states_are_those_of_the_seeds(tmp_path):
    source = formulas.InMemory(formulas.random_weights(SIZES), CONFIG)
    folder = write_megatron(tmp_path, source, tp=2, pp=2, dtype=torch.bfloat16, iteration=4, optimizer=STATE)
    (state,) = torch.load(folder / "mp_rank_01_001/model_optim_rng.pt", weights_only=False)["rng_state"]
    draw, mine = np.random.RandomState(0), random.Random()
    draw.set_state(state["np_rng_state"])
    mine.setstate(state["random_rng_state"])
    generator = torch.Generator()
    generator.set_state(state["torch_rng_state"])
    assert draw.randint(1 << 30) == np.random.RandomState(1334).randint(1 << 30)
    assert mine.random() == random.Random(1334).random()
    assert torch.rand(1, generator=generator) == torch.rand(1, generator=torch.Generator().manual_seed(1334))
    assert state["rng_tracker_states"]["model-parallel-rng"].view(torch.int64).tolist() == [1334 + 2718 + 1, 0]


@pytest.mark.distributed
def test_a_run_goes_to_the_original_with_its_optimizer(tmp_path):
    config, settings = tiny.project(tmp_path)
    plan = tiny.plan_of(config, settings, iters=2, save_interval=1)
    tiny.train(plan)
    run = RunDir(Path(plan.run_dir))
    result = convert(
        Conversion(source=run.path, destination=tmp_path / "m", to="megatron", tp=2, pp=2, vocab_divisible_by=8, optimizer=True)
    )
    assert (result.largest_logit_difference, result.vocab_size) == (0.0, plan.base.model.vocab_size)
    content = torch.load(tmp_path / "m/iter_0000002/mp_rank_00_000/model_optim_rng.pt", weights_only=False)
    assert (content["iteration"], content["args"].consumed_train_samples) == (2, 2 * plan.config.global_batch)
    table = open_source(run.path).read("model.embed_tokens.weight")
    rows = len(content["model"]["language_model"]["embedding"]["word_embeddings"]["weight"])
    assert torch.equal(content["model"]["language_model"]["embedding"]["word_embeddings"]["weight"], table[:rows])
    assert content["optimizer"]["state"][0]["exp_avg_sq"].max() > 0
