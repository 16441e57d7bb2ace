"""Where ranks stand, which layers they hold, and which levels are refused with which proposal."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from medsft.core.planning.layout import (
    Layout,
    bubble_share,
    check_gpus,
    check_layout,
    check_processes,
    padded_model,
    padded_vocab,
    smaller_first,
    stage_layers,
    valid_tensor_sizes,
)
from medsft.errors import Problem

SMOLLM2 = tiny.SMOLLM2
LLAMA_7B = replace(
    SMOLLM2,
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    tie_embeddings=False,
)


def only(problems: list[Problem]) -> Problem:
    (problem,) = problems
    return problem


@given(pp=st.integers(1, 6), dp=st.integers(1, 6), tp=st.integers(1, 6))
def test_ranks_and_coordinates_are_inverse(pp, dp, tp):
    layout = Layout(pp=pp, dp=dp, tp=tp)
    coordinates = [layout.coordinates(rank) for rank in range(layout.world)]
    assert [layout.rank(*place) for place in coordinates] == list(range(layout.world))
    assert coordinates == sorted(coordinates), "tensor ranks are neighbors, then data, then pipeline"


def test_a_tensor_level_that_heads_do_not_allow_proposes_its_neighbors():
    assert valid_tensor_sizes(SMOLLM2) == [1, 3]
    problem = only(check_layout(SMOLLM2, Layout(tp=2), global_batch=64))
    assert problem.where == "--tp"
    assert "9 heads, 3 key/value heads" in problem.message
    assert "1 and 3" in problem.hint
    assert "3." in only(check_layout(SMOLLM2, Layout(tp=5), global_batch=64)).hint


def test_more_stages_than_layers():
    problem = only(check_layout(SMOLLM2, Layout(pp=31), global_batch=64))
    assert problem.where == "--pp"
    assert "30" in problem.hint


def test_more_data_ranks_than_documents():
    problem = only(check_layout(SMOLLM2, Layout(dp=65, tp=3), global_batch=64))
    assert problem.where == "--nproc_per_node"
    assert "192 processes" in problem.hint


def test_all_problems_at_once():
    assert len(check_layout(SMOLLM2, Layout(tp=2, pp=40, dp=70), global_batch=64)) == 3


def test_processes_that_cannot_be_divided():
    problem = only(check_processes(2, 2, nproc_per_node=6, nodes=1))
    assert problem.where == "--nproc_per_node"
    assert "4 and 8" in problem.hint


def test_a_tensor_group_that_would_span_nodes():
    problem = only(check_processes(4, 1, nproc_per_node=6, nodes=2))
    assert problem.where == "--tp"
    assert "3 and 6" in problem.hint


@pytest.mark.parametrize(("tp", "pp", "nproc", "nodes"), [(1, 1, 1, 1), (2, 2, 4, 1), (8, 8, 8, 8), (2, 3, 2, 3)])
def test_levels_that_work(tp, pp, nproc, nodes):
    assert check_processes(tp, pp, nproc_per_node=nproc, nodes=nodes) == []


def test_more_processes_than_gpus():
    problem = only(check_gpus(1, 1, nproc_per_node=9, nodes=2, gpus=8))
    assert problem.where == "--nproc_per_node"
    assert "9 processes on a node, and this one has 8 GPUs" in problem.message
    assert "at most 8" in problem.hint


@pytest.mark.parametrize(("tp", "pp", "flag"), [(8, 2, "--tp"), (1, 9, "--pp"), (4, 4, "--tp")])
def test_sizes_that_need_more_gpus_than_there_are(tp, pp, flag):
    problem = only(check_gpus(tp, pp, nproc_per_node=4, nodes=2, gpus=4))
    assert problem.where == flag
    assert f"needs {tp * pp} processes, and there are 8 (--nproc_per_node 4 on 2 nodes with 4 GPUs)" in problem.message


@pytest.mark.parametrize(("tp", "pp", "nproc"), [(1, 1, 1), (4, 2, 4), (2, 1, 3)])
def test_enough_gpus(tp, pp, nproc):
    assert check_gpus(tp, pp, nproc_per_node=nproc, nodes=2, gpus=4) == []


@pytest.mark.parametrize("model", [SMOLLM2, LLAMA_7B], ids=["smollm2", "llama-7b"])
def test_stages_cover_all_layers_once(model):
    for pp in range(1, model.num_layers + 1):
        stages = stage_layers(model, pp)
        assert len(stages) == pp
        assert [layer for stage in stages for layer in stage] == list(range(model.num_layers))
        assert all(len(stage) for stage in stages)


def test_embedding_and_head_are_weighed():
    # The tables of SmolLM2 are as large as eight layers, so the first and the last stage get fewer.
    sizes = [len(stage) for stage in stage_layers(SMOLLM2, 4)]
    assert sizes[0] < max(sizes)
    assert sizes[-1] < sizes[0]


def test_layers_that_do_not_divide_evenly_differ_by_one_in_the_middle():
    sizes = [len(stage) for stage in stage_layers(replace(LLAMA_7B, vocab_size=1000), 5)]
    assert sorted(sizes) == [6, 6, 6, 7, 7]


def test_tables_are_padded_alike_for_every_level():
    model = replace(LLAMA_7B, num_kv_heads=8, vocab_size=32003)
    rows = {padded_model(model, tp=tp, vocab_multiple=None).vocab_size for tp in valid_tensor_sizes(model)}
    assert rows == {32008}
    assert padded_model(model, tp=2, vocab_multiple=128).vocab_size == padded_vocab(32003, tp=2, divisible_by=128) == 32256


def test_least_splitting_comes_first():
    assert list(smaller_first(4)) == [(1, 1), (2, 1), (1, 2), (4, 1), (2, 2), (1, 4)]


@pytest.mark.parametrize(("pp", "micro", "share"), [(1, 5, 0), (2, 1, 0.5), (4, 9, 0.25)])
def test_bubble(pp, micro, share):
    assert bubble_share(pp, micro) == share
