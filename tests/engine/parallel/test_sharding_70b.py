"""Llama-2-70B on 64 ranks, without 64 machines: modules on the meta device, in a process group that sends nothing."""

from __future__ import annotations

import math
import multiprocessing
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from adapters_table import LLAMA_2_70B
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.torch_version import TorchVersion

from medsft.core.engine.nn.attention import PackedSequences
from medsft.core.engine.nn.dtensor import local_range
from medsft.core.engine.nn.model import Decoder
from medsft.core.engine.parallel import tokens
from medsft.core.engine.parallel.mesh import Mesh
from medsft.core.engine.parallel.sharding import build_stage
from medsft.core.models.config import from_hf_config
from medsft.core.planning.layout import Layout, stage_layers
from medsft.core.planning.trainable import trainable_names

LAYOUT = Layout(pp=8, dp=1, tp=8)
TOKENS = 64
MODEL = from_hf_config(LLAMA_2_70B, where="config.json")
ALONE: Callable[[int], Executor] = (
    ThreadPoolExecutor
    if TorchVersion(torch.__version__) >= "2.13"
    else partial(ProcessPoolExecutor, mp_context=multiprocessing.get_context("fork"))
)
"""Earlier versions of torch crash where a thread ends that has used DTensor; processes take three times as long."""


@dataclass(frozen=True, kw_only=True)
class Built:
    """What one rank holds and what goes through it."""

    pp_rank: int
    tp_rank: int
    ranges: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    """Offset and shape of its part of each parameter."""
    full_shapes: dict[str, tuple[int, ...]]
    takes: tuple[int, ...]
    """Shape of what goes in; on the first tensor rank of each stage only."""
    gives: tuple[int, ...]


def build(rank: int) -> Built:
    dist.init_process_group("fake", rank=rank, world_size=LAYOUT.world, store=FakeStore())
    try:
        devices = init_device_mesh("cpu", (LAYOUT.pp, LAYOUT.dp, LAYOUT.tp), mesh_dim_names=("pp", "dp", "tp"))
        mesh = Mesh(LAYOUT, torch.device("meta"), rank, *LAYOUT.coordinates(rank), devices, None)
        decoder = build_stage(MODEL, mesh, compute_dtype=torch.bfloat16, trainable=trainable_names(MODEL))
        takes, gives = flow(decoder, mesh) if mesh.tp_rank == 0 else ((), ())
        parameters = dict(decoder.named_parameters())
        return Built(
            pp_rank=mesh.pp_rank,
            tp_rank=mesh.tp_rank,
            ranges={name: local_range(parameter) for name, parameter in parameters.items()},
            full_shapes={name: tuple(parameter.shape) for name, parameter in parameters.items()},
            takes=takes,
            gives=gives,
        )
    finally:
        dist.destroy_process_group()


@torch.no_grad()
def flow(decoder: Decoder, mesh: Mesh) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Send a stream through, and return the shapes of what goes in and of what comes out."""
    if mesh.is_first_stage:
        inputs = torch.empty(TOKENS, dtype=torch.int64, device="meta")
    else:
        inputs = torch.empty(TOKENS // LAYOUT.tp, MODEL.hidden_size, device="meta")
    sent = mock.Mock()  # the process group sends nothing; before torch 2.13 it does not take tensors without memory either
    with mock.patch.multiple(tokens, _all_gather=sent, _reduce_scatter=sent):
        # Decoder's own forward: a stage of a pipeline looks its micro-batches up first.
        outputs = Decoder.forward(decoder, inputs, PackedSequences.of([TOKENS - 10, 10], "meta"))
    assert sent.called
    return tuple(inputs.shape), tuple(outputs.shape)


@pytest.fixture(scope="module")
def ranks() -> list[Built]:
    """All 64, each in a thread of its own: DTensor keeps process groups in caches of the thread, and theirs end."""

    def alone(rank: int) -> Built:
        with ALONE(1) as worker:
            return worker.submit(build, rank).result()

    return [alone(rank) for rank in range(LAYOUT.world)]


def test_every_parameter_is_owned_exactly_once(ranks: list[Built]) -> None:
    owners: dict[str, list[Built]] = defaultdict(list)
    for rank in ranks:
        for name in rank.ranges:
            owners[name].append(rank)
    shapes = dict(MODEL.parameter_shapes())
    assert owners.keys() == shapes.keys()
    for name, shape in shapes.items():
        holders = owners[name]
        assert [rank.tp_rank for rank in holders] == list(range(LAYOUT.tp)), f"{name} is on one stage, on all its ranks"
        assert len({rank.pp_rank for rank in holders}) == 1
        assert {rank.full_shapes[name] for rank in holders} == {shape}
        parts = [rank.ranges[name] for rank in holders]
        if name.endswith("norm.weight"):
            assert set(parts) == {((0,), shape)}
        else:
            assert_partition(parts, shape, name)


def assert_partition(parts: list[tuple[tuple[int, ...], tuple[int, ...]]], shape: tuple[int, ...], name: str) -> None:
    """The parts are slabs along one dimension that follow each other without gap or overlap."""
    split = [dim for dim in range(len(shape)) if any(part[dim] != shape[dim] for _, part in parts)]
    assert len(split) == 1, f"{name} is split along {split}"
    (dim,) = split
    reached = 0
    for offset, part in sorted(parts):
        assert offset == tuple(reached if d == dim else 0 for d in range(len(shape)))
        assert math.prod(part) == math.prod(shape) // LAYOUT.tp
        reached += part[dim]
    assert reached == shape[dim]


def test_heads_are_split_whole(ranks: list[Built]) -> None:
    head = MODEL.head_dim
    for rank in ranks:
        layer = next(iter(stage_layers(MODEL, LAYOUT.pp)[rank.pp_rank]))
        for letter, heads in (("q", MODEL.num_heads), ("k", MODEL.num_kv_heads), ("v", MODEL.num_kv_heads)):
            (start, _), (rows, _) = rank.ranges[f"model.layers.{layer}.self_attn.{letter}_proj.weight"]
            assert (start, rows) == (rank.tp_rank * heads // LAYOUT.tp * head, heads // LAYOUT.tp * head)


def test_shapes_agree_at_each_stage_boundary(ranks: list[Built]) -> None:
    stages = [rank for rank in ranks if rank.tp_rank == 0]
    assert len(stages) == LAYOUT.pp
    for before, after in pairwise(stages):
        assert before.gives == after.takes == (TOKENS // LAYOUT.tp, MODEL.hidden_size)
    assert stages[0].takes == (TOKENS,)
    assert stages[-1].gives == (TOKENS // LAYOUT.tp, MODEL.hidden_size)
