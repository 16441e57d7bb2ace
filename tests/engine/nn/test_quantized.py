"""A frozen weight in nf4, or in another dtype than what computes: products and gradients next to the numbers it stands for."""

from __future__ import annotations

import pytest
import torch

from medsft.core.config.lora import ATTENTION, LoraSpec
from medsft.core.engine.kernels.nf4 import Part
from medsft.core.engine.nn.adapters import Adapter, FrozenLinear, LoraLinear
from medsft.core.engine.nn.attention import PackedSequences
from medsft.core.engine.nn.model import Decoder
from medsft.core.engine.nn.quantized import QuantizedWeight, in_format
from medsft.core.engine.parallel.master_weights import freeze, make_master_weights
from medsft.core.models.nf4 import is_quantized, stored_bytes
from medsft.core.planning.trainable import trainable_names

T, IN, OUT = 37, 70, 40
LORA = LoraSpec(rank=4, alpha=8, targets=ATTENTION)
in_each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@in_each_dtype
@pytest.mark.parametrize("kept", ["nf4", "bf16", "fp32"])
@pytest.mark.parametrize("lora", [True, False])
def test_products_and_gradients(dtype, kept, lora):
    """Bit for bit those of a layer whose weight is in the format of the product."""
    weight = draw(OUT, IN)
    layers = [LoraLinear(IN, OUT, bias=True, lora=LORA) if lora else FrozenLinear(IN, OUT, bias=True) for _ in range(2)]
    for layer in layers:
        for seed, (name, parameter) in enumerate(layer.named_parameters()):
            parameter.data = weight if name == "weight" else draw(*parameter.shape, seed=seed, dtype=dtype)
            parameter.requires_grad_("lora" in name)
    ours, plain = layers
    if kept == "nf4":
        ours.quantize()
        ours.quantized.fill(lambda rows: weight[rows])
        assert "weight" not in dict(ours.named_parameters())
    else:
        ours.weight.data = weight.to(torch.bfloat16 if kept == "bf16" else torch.float32)
    plain.weight.data = in_format(ours.weight if ours.quantized is None else ours.quantized, dtype).clone()
    found = []
    for layer in layers:
        x = draw(T, IN, seed=9, dtype=dtype).requires_grad_()
        out = layer(x)
        out.backward(draw(T, OUT, seed=10, dtype=dtype))
        found.append([out, x.grad, *(p.grad for p in layer.parameters() if p.requires_grad)])
        assert all(p.grad is None for p in layer.parameters() if not p.requires_grad)
    assert len(found[0]) == (4 if lora else 2)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    exact = draw(T, OUT, seed=10, dtype=dtype).double() @ plain.weight.double()
    if not lora:
        assert (found[0][1].double() - exact).norm() <= (1e-6 if dtype == torch.float32 else 3e-3) * exact.norm()


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@in_each_dtype
def test_a_model(variant, dtype, recompute):
    """Logits and gradients are those of the model whose weights are the numbers that nf4 means."""
    config = variant.config()
    ids, sequences = (torch.arange(30) * 5) % 96, PackedSequences.of([12, 18])
    results = []
    numbers = {}
    for precision in ("nf4", "bf16" if dtype == torch.bfloat16 else "fp32"):
        adapter = Adapter(lora=LORA, base_precision=precision)
        decoder = Decoder(config, adapter=adapter)
        decoder.init_weights(0)
        weights = {name: parameter.detach().clone() for name, parameter in decoder.named_parameters()}
        freeze(decoder, trainable_names(config, LORA, 0), compute_dtype=dtype, base_precision=precision)
        masters = make_master_weights(decoder, compute_dtype=dtype, data_parallel=False)
        assert all(is_quantized(name) for name in masters.quantized)
        assert len(masters.quantized) == (7 * config.num_layers if precision == "nf4" else 0)
        assert set(masters.by_name).isdisjoint({*masters.frozen, *masters.quantized})
        assert {*masters.frozen, *masters.quantized} == {name for name, _ in config.parameter_shapes()}
        with torch.no_grad():
            for name, weight in masters.quantized.items():
                weight.fill(weights[name].__getitem__)
                numbers[name] = in_format(weight, dtype).clone()
                assert sum(p.nbytes for p in weight.parameters()) == stored_bytes(*weights[name].shape)
            for name, parameter in masters.frozen.items():
                parameter.copy_(numbers.get(name, weights[name]))
            for name, parameter in masters.by_name.items():
                parameter.copy_(0.1 * draw(*parameter.shape, seed=len(name)))
        masters.copy_to_compute()
        for layer in decoder.model.layers.values():
            layer.recompute = recompute
        hidden = decoder(ids, sequences)
        hidden.float().square().sum().backward()
        results.append([hidden, *(master.grad for master in masters.by_name.values())])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_memory_for_the_numbers_is_one_and_stays():
    weights = [QuantizedWeight(Part.whole(64, 112), "cpu") for _ in range(2)]
    for weight in weights:
        weight.fill(lambda rows: draw(64, 112)[rows])
    first = in_format(weights[0], torch.float32)
    assert in_format(weights[1], torch.float32).data_ptr() == first.data_ptr()
    kept = torch.ones(3)
    assert in_format(kept, torch.float32).data_ptr() == kept.data_ptr()
    assert in_format(kept, torch.bfloat16).dtype == torch.bfloat16
