"""A base model in nf4: read into the shards of every layout, and as an adapter is merged into it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medsft.core.engine.formats.adapters import base_as_held
from medsft.core.engine.formats.quantized import QuantizedSource
from medsft.core.engine.kernels.nf4 import Part
from medsft.core.engine.nn.quantized import QuantizedWeight, in_format
from medsft.core.engine.train.weights import load_weights
from medsft.errors import MismatchError

DOWN = "model.layers.1.mlp.down_proj.weight"
NORM = "model.layers.1.input_layernorm.weight"


class InMemory:
    """A source of random weights that notes what is read."""

    def __init__(self, config):
        self.config = config
        generator = torch.Generator().manual_seed(0)
        self.weights = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in config.parameter_shapes()}
        self.reads = []

    def names(self):
        return tuple(self.weights)

    def shape(self, name):
        return tuple(self.weights[name].shape)

    def dtype(self, name):
        return self.weights[name].dtype

    def read(self, name, slices=None):
        found = self.weights[name][slices or ...].clone()
        self.reads.append((name, found.numel()))
        return found

    def file(self, name):
        return Path("base/model.safetensors")

    def fingerprint(self):
        return "0"


@pytest.fixture
def source(tiny):
    return InMemory(tiny.config())


def test_shards_of_every_layout_are_parts_of_the_same_numbers(source):
    expected = QuantizedSource(source).read(DOWN)
    rows, columns = source.shape(DOWN)
    assert (rows, columns) == (64, 112)
    for tp in (1, 2, 4):
        parts = [
            Part((rows, columns), range(rows), range(rank * columns // tp, (rank + 1) * columns // tp)) for rank in range(tp)
        ]
        shards = [QuantizedWeight(part, "cpu") for part in parts]
        for shard in shards:
            load_weights({DOWN: shard}, source)
        assert torch.equal(torch.cat([in_format(shard, torch.float32).clone() for shard in shards], dim=1), expected)
    assert not torch.equal(expected, source.weights[DOWN])


def test_what_an_adapter_is_merged_into(source):
    made = QuantizedSource(source)
    whole = made.read(DOWN)
    assert made.dtype(DOWN) == whole.dtype == torch.float32
    assert torch.equal(made.read(DOWN, (slice(10, 50), slice(3, 70))), whole[10:50, 3:70])
    assert torch.equal(made.read(DOWN, (slice(10, 50),)), whole[10:50])
    assert made.read(DOWN, (slice(5, 5),)).shape == (0, 112)
    for name in (NORM, "model.embed_tokens.weight"):
        assert torch.equal(made.read(name), source.weights[name])
    held = base_as_held(source, "nf4", torch.bfloat16)
    assert torch.equal(held.read(DOWN), whole)
    assert torch.equal(held.read(NORM), source.weights[NORM].bfloat16())


def test_a_weight_is_never_read_as_a_whole_where_it_is_large(source, monkeypatch):
    monkeypatch.setattr("medsft.core.engine.kernels.nf4._NUMBERS_AT_A_TIME", 1000)
    source.weights[DOWN] = torch.randn(2048, 112)
    weight = QuantizedWeight(Part.whole(2048, 112), "cpu")
    load_weights({DOWN: weight}, source)
    assert max(numbers for _, numbers in source.reads) <= 128 * 112
    assert sum(numbers for _, numbers in source.reads) == 2048 * 112


def test_numbers_that_are_not_finite_are_refused_with_file_and_name(source):
    source.weights[DOWN][60, 7] = torch.inf
    with pytest.raises(MismatchError, match=r"base/model\.safetensors.*NaN or infinity, in model\.layers\.1\.mlp\.down_proj"):
        load_weights({DOWN: QuantizedWeight(Part.whole(64, 112), "cpu")}, source)
