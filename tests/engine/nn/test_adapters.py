"""Adapters and trained rows next to the same mathematics in plain torch operations."""

from __future__ import annotations

import math
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from medsft.core.config.lora import ATTENTION, TARGETS, LoraSpec
from medsft.core.engine.nn.adapters import Adapter, FrozenLinear, LoraLinear, initial_factor, project_together, projection
from medsft.core.engine.nn.attention import PackedSequences
from medsft.core.engine.nn.loss import weighted_nll
from medsft.core.engine.nn.model import Decoder
from medsft.core.engine.nn.trained_rows import OutputProjection, TokenEmbedding
from medsft.core.engine.parallel.master_weights import freeze, make_master_weights
from medsft.core.planning.trainable import trainable_names, trainable_shapes

LORA = LoraSpec(rank=4, alpha=8, targets=TARGETS)
T, IN, OUT = 37, 24, 40


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


AnyModule = TypeVar("AnyModule", bound=nn.Module)


def filled(module: AnyModule, dtype: torch.dtype = torch.float32) -> AnyModule:
    """The module with random numbers, its base weights frozen."""
    with torch.no_grad():
        for seed, (name, parameter) in enumerate(module.named_parameters()):
            parameter.copy_(0.3 * draw(*parameter.shape, seed=seed))
            parameter.requires_grad_("lora" in name or "rows" in name)
    return module.to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_products_and_gradients(dtype, tolerance, bias):
    layer = filled(LoraLinear(IN, OUT, bias=bias, lora=LORA), dtype)
    x = draw(T, IN, seed=9, dtype=dtype).requires_grad_()
    out = layer(x)
    out.backward(draw(T, OUT, seed=10, dtype=dtype))
    plain = {name: p.detach().double().requires_grad_() for name, p in layer.named_parameters()}
    ours, y = x.grad, x.detach().double().requires_grad_()
    expected = y @ plain["weight"].T + 2 * (y @ plain["lora_A.weight"].T) @ plain["lora_B.weight"].T
    expected = expected + plain["bias"] if bias else expected
    expected.backward(draw(T, OUT, seed=10, dtype=dtype).double())
    pairs = [
        (out, expected),
        (ours, y.grad),
        *((getattr(layer, n).weight.grad, plain[f"{n}.weight"].grad) for n in ("lora_A", "lora_B")),
    ]
    for found, wanted in pairs:
        assert (found.double() - wanted).norm() <= tolerance * wanted.norm()
    assert layer.weight.grad is None


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)], ids=str)
@pytest.mark.parametrize("with_adapter", [(True, True, True), (False, True, False), (True, False, True), (False, False, False)])
def test_projections_of_the_same_input(dtype, tolerance, with_adapter):
    """Together they compute what each computes by itself."""
    layers = [
        filled(LoraLinear(IN, out, bias=True, lora=LORA) if adapted else FrozenLinear(IN, out, bias=False), dtype)
        for adapted, out in zip(with_adapter, (OUT, 16, 8), strict=True)
    ]
    x, kept = draw(T, IN, seed=9, dtype=dtype), []
    grads = [draw(T, layer.out_features, seed=seed, dtype=dtype) for seed, layer in enumerate(layers)]

    def compute(do) -> tuple[list[Tensor], list[Tensor]]:
        y = x.clone().requires_grad_()
        outs = do(y)
        torch.autograd.backward(outs, grads)
        factors = [p for layer in layers for name, p in layer.named_parameters() if "lora" in name]
        found = [y.grad, *(p.grad for p in factors)]
        for p in factors:
            p.grad = None
        return list(outs), found

    def together(y: Tensor):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            return project_together(y, layers)

    (ours, found), (theirs, expected) = compute(together), compute(lambda y: [layer(y) for layer in layers])
    for one, other in zip([*ours, *found], [*theirs, *expected], strict=True):
        assert (one.double() - other.double()).norm() <= tolerance * other.double().norm()
    parameters = {p.data_ptr() for layer in layers for p in layer.parameters()}
    sizes = sorted(t.numel() for t in kept if t.data_ptr() not in parameters)
    assert sizes == ([sum(with_adapter) * T * LORA.rank, T * IN] if any(with_adapter) else [])
    assert all(layer.weight.grad is None for layer in layers)


def test_autograd_keeps_the_input_and_little_else():
    layer, kept = filled(LoraLinear(IN, OUT, bias=False, lora=LORA)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(draw(T, IN, seed=9))
    parameters = {p.data_ptr() for p in layer.parameters()}
    sizes = sorted(t.numel() for t in kept if t.data_ptr() not in parameters)
    assert sizes == [T * LORA.rank, T * IN]
    assert not any(t.data_ptr() == layer.weight.data_ptr() for t in kept)


def test_which_projections_get_one():
    adapter = Adapter(lora=LoraSpec(rank=2, alpha=4, targets=ATTENTION), base_precision="fp32")
    assert isinstance(projection("q_proj", 8, 8, adapter=adapter), LoraLinear)
    assert type(projection("up_proj", 8, 8, adapter=adapter)) is FrozenLinear
    assert not isinstance(projection("q_proj", 8, 8), FrozenLinear)


def test_scaling():
    assert LoraLinear(8, 8, bias=False, lora=LoraSpec(rank=4, alpha=6, targets=TARGETS)).scaling == 1.5
    assert LoraLinear(8, 8, bias=False, lora=LoraSpec(rank=4, alpha=6, targets=TARGETS, rslora=True)).scaling == 3


def test_a_weight_kept_in_another_format():
    layer = filled(FrozenLinear(IN, OUT, bias=False)).bfloat16()
    x = draw(T, IN, seed=9).requires_grad_()
    layer(x).sum().backward()
    assert torch.allclose(layer(x), x @ layer.weight.float().T, atol=1e-6)
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


def test_where_training_begins():
    name = "model.layers.0.mlp.up_proj.lora_A.weight"
    a = initial_factor(name, (8, 400), seed=3)
    assert torch.equal(a, initial_factor(name, (8, 400), seed=3))
    assert not torch.equal(a, initial_factor(name, (8, 400), seed=4))
    assert not torch.equal(a, initial_factor(name.replace("up", "gate"), (8, 400), seed=3))
    assert 0.9 / math.sqrt(400) < a.abs().max() <= 1 / math.sqrt(400)
    assert initial_factor(name.replace("lora_A", "lora_B"), (400, 8), seed=3).count_nonzero() == 0


def test_looking_up_trained_rows():
    ids = torch.tensor([5, 2, 9, 5, 0, 7, 2, 2])
    embedding = filled(TokenEmbedding(10, 6, (2, 5, 8)))
    grad = draw(8, 6, seed=1)
    embedding(ids).backward(grad)
    whole = embedding.weight.detach().clone().requires_grad_()
    torch.nn.functional.embedding(ids, whole).backward(grad)
    assert torch.allclose(embedding.trained_rows.grad, whole.grad[[2, 5, 8]], atol=1e-6)
    assert embedding.weight.grad is None


@pytest.mark.parametrize("chunk_rows", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_loss_trains_rows_of_a_frozen_head(chunk_rows, dtype):
    rows = (3, 11, 18)
    head = filled(OutputProjection(8, 20, rows), dtype)
    hidden, labels = draw(7, 8, seed=5, dtype=dtype).requires_grad_(), torch.tensor([3, 1, 18, 0, 3, 11, 4])
    weights = torch.tensor([1.0, 1, 0, 0.5, 1, 1, 1])
    loss = weighted_nll(
        hidden, head.weight, labels, weights, vocab_size=19, chunk_rows=chunk_rows, trained=head.held_rows()
    ).loss
    (2 * loss).backward()
    whole = head.weight.detach().clone().requires_grad_()
    same = hidden.detach().clone().requires_grad_()
    (2 * weighted_nll(same, whole, labels, weights, vocab_size=19, chunk_rows=chunk_rows).loss).backward()
    assert torch.equal(hidden.grad, same.grad)
    expected = whole.grad[list(rows)].float()
    assert (head.trained_rows.grad.float() - expected).norm() <= (1e-6 if dtype == torch.float32 else 2e-2) * expected.norm()
    assert head.weight.grad is None


def decoder_of(config, adapter, dtype=torch.float32) -> Decoder:
    decoder = Decoder(config, adapter=adapter)
    decoder.init_weights(0)
    names = trainable_names(config, adapter.lora, len(adapter.rows)) if adapter else trainable_names(config)
    freeze(decoder, names, compute_dtype=dtype)
    return decoder


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_a_model(variant, recompute):
    """What is trained has the plan's names and shapes, gets gradients, and alone; merged weights give the same logits."""
    config, rows = variant.config(), (90, 95)
    adapter = Adapter(lora=LORA, rows=rows, base_precision="fp32")
    decoder = decoder_of(config, adapter)
    masters = make_master_weights(decoder, compute_dtype=torch.float32, data_parallel=False)
    assert {n: tuple(p.shape) for n, p in masters.by_name.items()} == trainable_shapes(config, LORA, len(rows))
    masters.copy_to_compute()
    ids, sequences = (torch.arange(30) * 5) % 96, PackedSequences.of([12, 18])
    for layer in decoder.model.layers.values():
        layer.recompute = recompute
    hidden = decoder(ids, sequences)
    labels, weights = (ids * 7) % 96, torch.ones(30)
    trained = decoder.trained_head_rows()
    weighted_nll(hidden, decoder.head_weight(), labels, weights, vocab_size=96, trained=trained).loss.backward()
    assert all(p.grad is not None and p.grad.count_nonzero() for p in masters.by_name.values())
    assert all(p.grad is None for p in masters.frozen.values())

    merged = Decoder(config)
    weights_of = {name: p.detach().clone() for name, p in masters.frozen.items()}
    for name, a in masters.by_name.items():
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            weights_of[f"{module}.weight"] += LORA.scaling * masters.by_name[f"{module}.lora_B.weight"] @ a
    merged.load_state_dict(weights_of)
    with torch.no_grad():
        difference = merged.logits(merged(ids, sequences)) - decoder.logits(hidden)
    assert difference.abs().max() < 1e-5


def test_trained_rows_are_written_into_the_table(tiny):
    config = tiny.config()
    adapter = Adapter(lora=LORA, rows=(7, 95), base_precision="fp32")
    decoder = decoder_of(config, adapter, torch.bfloat16)
    masters = make_master_weights(decoder, compute_dtype=torch.bfloat16, data_parallel=False)
    before = masters.frozen["lm_head.weight"].detach().clone()
    with torch.no_grad():
        masters.by_name["lm_head.trained_rows"].fill_(2.5)
    masters.copy_to_compute()
    after = masters.frozen["lm_head.weight"]
    assert (after[[7, 95]] == 2.5).all()
    others = [row for row in range(96) if row not in (7, 95)]
    assert torch.equal(after[others], before[others])
