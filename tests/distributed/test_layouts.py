"""Every layout trains the same model: same losses, same gradient norms, same validation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import tiny

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(240)]

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-untied": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {}),
    "mistral-window": ("mistral", {"sliding_window": 9}),
}
CUBE = [(pp, dp, tp) for pp in (1, 2) for dp in (1, 2) for tp in (1, 2)][1:]


def figures(config, settings, folder: Path, pp: int, dp: int, tp: int, *, reshard: bool = False, **changes):
    # A folder of its own each time: a test that is run once more must not go on with the run that was cut short.
    runs = mkdtemp(dir=folder)
    plan = tiny.plan_of(config, settings, pp=pp, tp=tp, nproc_per_node=pp * dp * tp, save_checkpoint_dir=runs, **changes)
    events = tiny.train(replace(plan, reshard=reshard))
    return [
        *tiny.series(events, "step", "loss", "grad_norm", "tokens", "supervised_tokens"),
        *tiny.series(events, "eval", "loss", "accuracy", "tokens"),
    ]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-4, rel=1e-4)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """The figures of one process for each family, computed once."""
    known = {}

    def get(name):
        if name not in known:
            family, changes = FAMILIES[name]
            folder = tmp_path_factory.mktemp(name)
            config, settings = tiny.project(folder, family, **changes)
            known[name] = (config, settings, folder, figures(config, settings, folder, 1, 1, 1))
        return known[name]

    return get


@pytest.mark.parametrize("layout", CUBE, ids=lambda layout: "pp{}-dp{}-tp{}".format(*layout))
@pytest.mark.parametrize("name", ["llama-untied", "llama-tied"])
def test_every_layout_of_two(one_process, name, layout):
    config, settings, folder, expected = one_process(name)
    assert_same(figures(config, settings, folder, *layout), expected)


@pytest.mark.parametrize("layout", [(2, 1, 2), (1, 2, 2)], ids=["pp2-tp2", "dp2-tp2"])
@pytest.mark.parametrize("name", ["qwen2-tied", "qwen3", "mistral-window"])
def test_families(one_process, name, layout):
    config, settings, folder, expected = one_process(name)
    assert_same(figures(config, settings, folder, *layout), expected)


def test_four_stages(one_process):
    config, settings, folder, expected = one_process("llama-tied")
    assert_same(figures(config, settings, folder, 4, 1, 1), expected)


def test_four_tensor_ranks(tmp_path):
    config, settings = tiny.project(tmp_path, num_key_value_heads=4)
    assert_same(figures(config, settings, tmp_path, 1, 1, 4), figures(config, settings, tmp_path, 1, 1, 1))


@pytest.mark.parametrize("micro_batch", [1, 4, 8])
def test_any_micro_batch(one_process, micro_batch):
    config, settings, folder, expected = one_process("llama-untied")
    assert_same(figures(config, settings, folder, 1, 1, 1, micro_batch=micro_batch), expected)


def test_weight_on_questions(one_process):
    config, settings, folder, _ = one_process("llama-tied")
    expected = figures(config, settings, folder, 1, 1, 1, loss_mask=0.3)
    assert_same(figures(config, settings, folder, 2, 2, 1, loss_mask=0.3), expected)


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputing_changes_nothing(one_process, recompute):
    config, settings, folder, expected = one_process("llama-untied")
    assert_same(figures(config, settings, folder, 1, 2, 1, recompute=recompute), expected)


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}], ids=["untied", "tied"])
def test_weights_that_are_gathered_for_each_pass_give_the_same_numbers(tmp_path, changes):
    """Bit for bit, over several micro-batches: gradients are reduced once all the same."""
    config, settings = tiny.project(tmp_path, **changes)
    kept, gathered = (
        figures(config, settings, tmp_path, 1, 2, 1, micro_batch=1, recompute="full", reshard=reshard)
        for reshard in (False, True)
    )
    assert gathered == kept
