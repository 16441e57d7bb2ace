"""The formula for the memory of a rank, against counts made by hand. Measured peaks: see tests/distributed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from medsft.core.models.config import ModelConfig
from medsft.core.planning.layout import Layout
from medsft.core.planning.memory import Workload, estimate_memory, stage_weights
from medsft.core.planning.trainable import count_trainable, trainable_names

MODEL = ModelConfig(
    family="llama",
    vocab_size=1000,
    hidden_size=64,
    intermediate_size=128,
    num_layers=6,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    norm_eps=1e-5,
    rope_theta=1e4,
    max_position_embeddings=512,
    tie_embeddings=False,
)
WORK = Workload(stream_tokens=100, num_micro_batches=8, bf16=False, recompute="none", device_kind="cpu")
PARAMETERS = MODEL.num_parameters()


def test_one_process_in_fp32():
    found = estimate_memory(MODEL, Layout(), WORK)
    assert (found.weights, found.gradients, found.optimizer) == (4 * PARAMETERS, 4 * PARAMETERS, 8 * PARAMETERS)


def test_bf16_computes_with_a_copy():
    found = estimate_memory(MODEL, Layout(), replace(WORK, bf16=True))
    assert found.weights == 6 * PARAMETERS
    assert found.activations < estimate_memory(MODEL, Layout(), WORK).activations


def test_data_parallel_ranks_share_masters_and_moments():
    found = estimate_memory(MODEL, Layout(dp=2), WORK)
    shard = -(-PARAMETERS // 2)
    assert (found.weights, found.gradients, found.optimizer) == (4 * shard + 4 * PARAMETERS, 4 * PARAMETERS, 8 * shard)


def test_libraries_for_gpus_are_in_the_memory_of_a_process_on_a_cpu():
    def more(work: Workload) -> int:
        without, having = (estimate_memory(MODEL, Layout(), replace(work, torch_for_gpus=value)) for value in (False, True))
        assert replace(having, process=0) == replace(without, process=0)
        return having.process - without.process

    assert more(WORK) == 400 << 20
    assert more(replace(WORK, device_kind="cuda")) == 0


def test_moments_in_8_bits_and_weights_without_masters():
    """Two bytes and two 256ths of a scale for both moments; in bf16 two bytes for a weight, with data parallel two more."""
    work = replace(WORK, optimizer="adamw8bit")
    moments = math.ceil(2.03125 * PARAMETERS)
    found = estimate_memory(MODEL, Layout(), work)
    assert (found.weights, found.gradients, found.optimizer) == (4 * PARAMETERS, 4 * PARAMETERS, moments)
    found = estimate_memory(MODEL, Layout(), replace(work, bf16=True))
    assert (found.weights, found.gradients, found.optimizer) == (2 * PARAMETERS, 4 * PARAMETERS, moments)
    shard = -(-PARAMETERS // 2)
    found = estimate_memory(MODEL, Layout(dp=2), replace(work, bf16=True))
    assert (found.weights, found.optimizer) == (2 * shard + 2 * PARAMETERS, math.ceil(2.03125 * shard))


@pytest.mark.parametrize(("dp", "bf16"), [(1, False), (1, True), (2, False), (2, True)])
def test_frozen_weights_have_no_master_no_gradient_and_no_moments(dp, bf16):
    trainable = {name for name in trainable_names(MODEL) if ".self_attn." in name}
    trained, unit = count_trainable(MODEL, trainable), 2 if bf16 else 4
    assert 0 < trained < PARAMETERS / 3
    found = estimate_memory(MODEL, Layout(dp=dp), replace(WORK, bf16=bf16), trainable)
    frozen, shard = PARAMETERS - trained, -(-trained // dp)
    copies = unit * trained if bf16 or dp > 1 else 0
    frozen_bytes = unit * frozen if dp == 1 else unit * (frozen // dp + frozen)
    assert found.weights == 4 * shard + copies + frozen_bytes
    assert (found.gradients, found.optimizer) == (4 * trained, 8 * shard)


def test_by_default_every_weight_is_trained():
    assert count_trainable(MODEL, trainable_names(MODEL)) == PARAMETERS
    assert estimate_memory(MODEL, Layout(), WORK, trainable_names(MODEL)) == estimate_memory(MODEL, Layout(), WORK)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("pp", [1, 2, 3, 6])
def test_stages_hold_all_parameters(tied, pp):
    model = replace(MODEL, tie_embeddings=tied)
    held = sum(sum(stage_weights(model, pp, stage).values()) for stage in range(pp))
    copy_of_table = MODEL.vocab_size * MODEL.hidden_size if tied and pp > 1 else 0
    assert held == model.num_parameters() + copy_of_table


LAYER = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 128 + 2 * 64
"""Query, key, value and output; gate, up and down; two norms."""
FIRST_STAGE = 2 * LAYER + 1000 * 64
"""A third of the layers and the embedding: as heavy as the last stage, and it has the most micro-batches in flight."""


@pytest.mark.parametrize(
    ("layout", "parameters"),
    [(Layout(tp=2), PARAMETERS // 2), (Layout(pp=3), FIRST_STAGE), (Layout(tp=2, pp=3), FIRST_STAGE // 2)],
    ids=str,
)
def test_a_rank_holds_its_part_of_the_parameters(layout, parameters):
    found = estimate_memory(MODEL, layout, WORK)
    assert (found.weights, found.gradients, found.optimizer) == (4 * parameters, 4 * parameters, 8 * parameters)
    whole = estimate_memory(MODEL, replace(layout, tp=1), WORK)
    assert found.activations * layout.tp == whole.activations


def test_recomputing_saves_activations():
    kinds = [estimate_memory(MODEL, Layout(), replace(WORK, recompute=kind)) for kind in ("none", "selective", "full")]
    sizes = [found.activations for found in kinds]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3


def test_more_micro_batches_than_stages_cost_nothing():
    layout = Layout(pp=3)
    few = estimate_memory(MODEL, layout, replace(WORK, num_micro_batches=1))
    enough = estimate_memory(MODEL, layout, replace(WORK, num_micro_batches=3))
    assert few.activations < enough.activations
    assert enough == estimate_memory(MODEL, layout, replace(WORK, num_micro_batches=50))
