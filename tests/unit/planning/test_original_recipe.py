"""Numbers of the original's recipe that do not need a model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from medsft.core.config.run_config import RunConfig
from medsft.core.models.config import ModelConfig
from medsft.core.planning.layout import padded_model
from medsft.core.planning.order import SampleOrder, deal_in_order, hidden_split
from medsft.core.planning.schedule import learning_rate

ORIGINAL = RunConfig(compat="megatron-llm")


def test_its_log_shows_the_rate_of_the_next_update() -> None:
    config = replace(ORIGINAL, lr=1e-2, min_lr=1e-3, warmup_fraction=0.25)
    rates = [learning_rate(config, iteration, 4) for iteration in range(1, 6)]
    assert rates[0] == 0
    assert rates[1:] == pytest.approx([1e-2, 7.75e-3, 3.25e-3, 1e-3])


@pytest.mark.parametrize(
    ("documents", "sizes"), [(10178, [9863, 305, 10]), (500, [485, 15, 0]), (60, [58, 2, 0]), (17, [16, 1, 0]), (1, [1, 0, 0])]
)
def test_hidden_split(documents: int, sizes: list[int]) -> None:
    parts = hidden_split(documents, 1234)
    assert [len(part) for part in parts] == sizes
    assert sorted(np.concatenate(parts)) == list(range(documents))


def test_epochs_are_permutations_of_one_generator() -> None:
    random = np.random.RandomState(7)
    random.permutation(13)
    expected = np.concatenate([random.permutation(10) for _ in range(4)])
    order = SampleOrder(10, 4, 7, numpy_legacy=True, drawn_before=13)
    assert np.concatenate([order.batch(iteration) for iteration in range(10)]).tolist() == expected.tolist()
    assert order.batch(3).tolist() == expected[12:16].tolist()


def test_blocks_go_round_the_ranks() -> None:
    assert deal_in_order(8, dp=2, micro_batch=2) == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]


@pytest.mark.parametrize(("tokens", "rows"), [(32000, [32000, 32000, 32256, 32768]), (32019, [32128, 32256, 32256, 32768])])
def test_padding_depends_on_the_level(tokens: int, rows: list[int]) -> None:
    model = ModelConfig(
        family="llama",
        vocab_size=tokens,
        hidden_size=64,
        intermediate_size=128,
        num_layers=1,
        num_heads=8,
        num_kv_heads=8,
        head_dim=8,
        norm_eps=1e-5,
        rope_theta=1e4,
        max_position_embeddings=64,
        tie_embeddings=False,
    )
    assert [padded_model(model, tp=tp, vocab_multiple=128).vocab_size for tp in (1, 2, 4, 8)] == rows
