"""What the check of a GPU does with tensors: bench/gpu. tests/e2e/test_gpu_check.py runs all of it."""

from __future__ import annotations

import torch
from fake_cuda import fake_gpu
from torch import nn

from bench import flops
from bench.gpu import shapes, trained
from medsft.core.engine.kernels.nf4 import Part
from medsft.core.engine.nn.quantized import QuantizedWeight
from medsft.core.engine.parallel.master_weights import MasterWeights


def zeros(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=dtype, device=device), requires_grad=dtype.is_floating_point)


def masters(device: str = "cpu") -> MasterWeights:
    quantized = QuantizedWeight(Part.whole(64, 128), device)
    return MasterWeights(
        {"a.weight": zeros(64, 32, device=device), "a.lora_B.weight": zeros(8, 2, device=device)},
        {"a.weight": zeros(64, 32, dtype=torch.bfloat16, device=device), "a.lora_B.weight": zeros(8, 2, device=device)},
        {"b.weight": zeros(64, 32, device=device), "norm.weight": zeros(32, device=device)},
        {"c.weight": quantized},
    )


def test_zeros_of_a_base_become_random_and_an_adapter_stays_as_it_begins() -> None:
    weights = masters()
    trained.fill(weights)
    assert weights.by_name["a.weight"].std() > 0.01
    assert torch.equal(weights.compute_copies["a.weight"], weights.by_name["a.weight"].bfloat16())
    assert weights.frozen["b.weight"].std() > 0.01
    assert torch.equal(weights.frozen["norm.weight"], torch.ones(32))
    assert not weights.by_name["a.lora_B.weight"].any()
    numbers = weights.quantized["c.weight"].dequantized(torch.float32)
    assert 0.01 < numbers.std() < 0.1
    assert numbers.isfinite().all()


def test_the_published_sizes() -> None:
    counts = {
        "135M": (shapes.SMOLLM2_135M, 134_515_008),
        "1B": (shapes.LLAMA_1B, 1_235_814_400),
        "8B": (shapes.LLAMA_8B, 8_030_261_248),
    }
    for name, (shape, count) in counts.items():
        assert shapes.config_of(shape).num_parameters() == count, name


def test_a_frozen_weight_counts_for_two_thirds() -> None:
    model = shapes.config_of(shapes.LLAMA_8B)
    all_trained, frozen = (flops.per_token(model, [2048], [2048], frozen=one) for one in (False, True))
    attention = 6 * model.num_layers * model.num_heads * model.head_dim * 2048
    assert (frozen - attention) / (all_trained - attention) == 4 / 6
    assert 0.95 < all_trained / (6 * model.num_parameters()) < 1.1


def test_on_a_gpu_nothing_waits_for_the_host() -> None:
    """On fake CUDA tensors, as far as these can go without a kernel."""
    with fake_gpu() as watch:
        weights = masters("cuda")
        watch.begin()
        trained.fill(weights)
        assert watch.kernels["random_"] == 2  # codes and scales
        assert not watch.syncs
