"""What training does to be fast, against the plain way: values, gradients, and the losses of 20 iterations."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch.func import functional_call

from medsft.core.engine.kernels import cpu
from medsft.core.engine.nn import model as model_module
from medsft.core.engine.nn.attention import PackedSequences, attend
from medsft.core.engine.nn.fused import rms_norm, rotate, swiglu
from medsft.core.engine.nn.linear import Linear
from medsft.core.engine.nn.loss import weighted_nll
from medsft.core.engine.nn.model import Decoder
from medsft.core.engine.parallel.master_weights import MasterWeights, make_master_weights

LENGTHS = (150, 1, 70, 29)
CONFIG = replace(tiny.SMALL_MODEL, num_layers=3, tie_embeddings=True)
needs_compiler = pytest.mark.skipif(cpu.library() is None, reason="no C compiler")


@pytest.fixture(autouse=True)
def every_kernel(monkeypatch):
    """Products are taken on every processor, also where training leaves them to torch."""
    monkeypatch.setattr(cpu, "torch_fp32_matmul_is_slow", lambda: True)
    monkeypatch.setattr(cpu, "bf16_is_slow", lambda: True)


def normal(*shape, dtype=torch.bfloat16, scale=1.0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * scale).to(dtype)


def without_kernels(monkeypatch):
    monkeypatch.setattr(cpu, "supports", lambda *_, **__: False)


def plainly(monkeypatch):
    """Train by the definitions: no kernels, operations that torch differentiates by itself."""
    without_kernels(monkeypatch)
    monkeypatch.setattr(cpu, "bf16_is_slow", lambda: False)
    monkeypatch.setattr(model_module, "rms_norm", lambda x, w, eps: w * F.rms_norm(x.float(), w.shape, eps=eps).to(x.dtype))
    monkeypatch.setattr(model_module, "swiglu", lambda gate, up: F.silu(gate) * up)
    monkeypatch.setattr(model_module, "rotate_queries_and_keys", plain_rotate_both)
    monkeypatch.setattr(model_module, "recompute_in_backward", lambda *_: nullcontext())


def plain_rotate(heads, cos, sin):
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def plain_rotate_both(q, k, cos, sin):
    return plain_rotate(q, cos, sin), plain_rotate(k, cos, sin)


def plain_loss(hidden, head, labels, weights):
    return (F.cross_entropy((hidden @ head.T).float(), labels, reduction="none") * weights).sum()


def fast_loss(hidden, head, labels, weights):
    return weighted_nll(hidden, head, labels, weights, vocab_size=len(head)).loss


def turned(heads):
    angles = torch.arange(len(heads))[:, None, None] * torch.linspace(1.0, 0.01, heads.shape[-1] // 2)
    return rotate(heads, angles.cos().to(heads.dtype), angles.sin().to(heads.dtype))


def linear(x, weight, bias=None):
    rows, columns = weight.shape
    module = Linear(columns, rows, bias=bias is not None, device="meta")
    return functional_call(module, {"weight": weight} if bias is None else {"weight": weight, "bias": bias}, (x,))


def relative_error(ours, exact):
    return float((ours.detach().double() - exact.detach()).norm() / exact.detach().norm())


AS_EXACT_AS_NEED_BE = {torch.bfloat16: 3e-3, torch.float32: 1e-6}
in_each_dtype = pytest.mark.parametrize("dtype", AS_EXACT_AS_NEED_BE, ids=str)


@needs_compiler
@in_each_dtype
@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (lambda x, w: rms_norm(x, w, 1e-5), (normal(37, 96), normal(96))),
        (lambda x, w: rms_norm(x, w, 1e-5), (normal(7, 3, 8), normal(8))),
        (swiglu, (normal(37, 50, scale=3), normal(37, 50))),
        (turned, (normal(37, 5, 12),)),
        (
            lambda q, k, v: attend(q, k, v, PackedSequences.of((300,))),
            (normal(300, 6, 16), normal(300, 2, 16), normal(300, 2, 16, scale=2)),
        ),
        (
            lambda q, k, v: attend(q, k, v, PackedSequences.of((300,)), 70),
            (normal(300, 6, 16), normal(300, 2, 16), normal(300, 2, 16, scale=2)),
        ),
    ],
    ids=["norm", "norm of heads", "swiglu", "rotation", "attention", "attention in a window"],
)
def test_kernels_are_as_good_as_tensor_operations(function, inputs, dtype, monkeypatch):
    def run(dtype):
        tensors = [x.to(dtype).requires_grad_() for x in inputs]
        out = function(*tensors)
        return [out, *torch.autograd.grad((out * normal(*out.shape).to(dtype)).sum(), tensors)]

    ours = run(dtype)
    without_kernels(monkeypatch)
    for kernel, operations, exact in zip(ours, run(dtype), run(torch.float64), strict=True):
        assert kernel.dtype == dtype
        assert relative_error(kernel, exact) < max(1.25 * relative_error(operations, exact), AS_EXACT_AS_NEED_BE[dtype])


@needs_compiler
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("tokens", "size", "features"), [(192, 48, 96), (300, 1, 1), (193, 37, 51), (1201, 5, 1541), (257, 1537, 33)]
)
def test_products_are_as_good_as_torchs(tokens, size, features, bias, monkeypatch):
    inputs = normal(tokens, size), normal(features, size), *([normal(features)] if bias else [])

    def run(dtype):
        tensors = [x.to(dtype).requires_grad_() for x in inputs]
        out = linear(*tensors)
        return [out, *torch.autograd.grad((out * normal(*out.shape).to(dtype)).sum(), tensors)]

    assert cpu.prefers_own_matmul(inputs[0].float(), inputs[1].float().T)
    ours = run(torch.float32)
    without_kernels(monkeypatch)
    for kernel, operations, exact in zip(ours, run(torch.float32), run(torch.float64), strict=True):
        assert kernel.dtype == torch.float32
        assert kernel.is_contiguous()
        assert relative_error(kernel, exact) < max(1.25 * relative_error(operations, exact), 1e-6)


@pytest.mark.parametrize(("tokens", "size", "features"), [(200, 48, 80), (64, 5000, 96), (70, 48, 9000), (5000, 64, 64)])
def test_bf16_in_fp32_is_as_good_as_torchs(tokens, size, features, monkeypatch):
    def run(dtype):
        tensors = [x.to(dtype).requires_grad_() for x in (normal(tokens, size), normal(features, size))]
        out = linear(*tensors)
        return [out, *torch.autograd.grad((out * normal(*out.shape).to(dtype)).sum(), tensors)]

    ours = run(torch.bfloat16)
    monkeypatch.setattr(cpu, "bf16_is_slow", lambda: False)
    for widened, operations, exact in zip(ours, run(torch.bfloat16), run(torch.float64), strict=True):
        assert widened.dtype == torch.bfloat16
        assert relative_error(widened, exact) < max(1.05 * relative_error(operations, exact), 2e-3)


@needs_compiler
def test_products_take_tensors_however_they_lie_in_memory():
    x, weight = normal(30, 2, 200, dtype=torch.float32)[:, 1].T, normal(80, 60, dtype=torch.float32)[::2, ::2]
    x.requires_grad_()
    weight.requires_grad_()
    out = linear(x, weight)
    torch.testing.assert_close(out, x @ weight.T, atol=1e-5, rtol=1e-5)
    ours = torch.autograd.grad(out.sum(), [x, weight])  # the gradient of a sum is one number, seen everywhere
    torch.testing.assert_close(ours, torch.autograd.grad((x @ weight.T).sum(), [x, weight]), atol=1e-5, rtol=1e-5)


@needs_compiler
def test_products_do_not_depend_on_the_threads():
    x, weight = normal(700, 900, dtype=torch.float32), normal(1700, 900, dtype=torch.float32)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(linear(x, weight))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@needs_compiler
def test_products_of_few_rows_and_of_other_dtypes_are_left_to_torch():
    many, square = normal(200, 8, dtype=torch.float32), normal(8, 8, dtype=torch.float32)
    assert cpu.prefers_own_matmul(many, square)
    assert not cpu.prefers_own_matmul(many[:100], square)
    assert not cpu.prefers_own_matmul(many.bfloat16(), square.bfloat16())
    assert not cpu.prefers_own_matmul(many.to("meta"), square)


@needs_compiler
@in_each_dtype
@pytest.mark.parametrize("tokens", [40, 400])
def test_the_kernel_of_the_loss_is_as_good_as_tensor_operations(tokens, dtype):
    hidden, head = normal(tokens, 32), normal(96, 32)
    labels, weights = torch.arange(tokens) * 2 % 96, torch.linspace(0.0, 2.0, tokens)
    results = {}
    for name, loss, computing in (
        ("kernel", fast_loss, dtype),
        ("plain", plain_loss, dtype),
        ("exact", plain_loss, torch.float64),
    ):
        tensors = [hidden.to(computing).requires_grad_(), head.to(computing).requires_grad_()]
        value = loss(*tensors, labels, weights)
        results[name] = [value, *torch.autograd.grad(value, tensors)]
    for kernel, plain, exact in zip(*results.values(), strict=True):
        assert relative_error(kernel, exact) < max(1.25 * relative_error(plain, exact), AS_EXACT_AS_NEED_BE[dtype])


@needs_compiler
@in_each_dtype
def test_kernels_pass_on_what_is_not_a_number(dtype):
    x, weight = normal(4, 16, dtype=dtype), normal(16, dtype=dtype)
    x[1, 3] = torch.nan
    assert rms_norm(x, weight, 1e-5)[1].isnan().all()
    assert swiglu(x, x)[1, 3].isnan()
    nll = cpu.cross_entropy_(x.clone(), torch.zeros(4, dtype=torch.int64))
    assert nll.isnan().tolist() == [False, True, False, False]
    many = torch.cat([x.float()] * 50)
    assert linear(many, many[2:3]).isnan().flatten().tolist() == [False, True, False, False] * 50
    heads = x[:, None]
    assert attend(heads, heads, heads, PackedSequences.of((1, 1, 2))).isnan().any(-1).flatten().tolist() == [
        False,
        True,
        False,
        False,
    ]


@needs_compiler
def test_a_label_outside_the_vocabulary_is_refused():
    with pytest.raises(IndexError):
        cpu.cross_entropy_(normal(2, 8), torch.tensor([0, 8]))


def test_without_a_compiler_there_are_no_kernels(monkeypatch):
    cpu._load.cache_clear()
    monkeypatch.setenv("CC", "/nowhere/cc")
    try:
        assert not cpu.supports(normal(2, 2))
        assert rms_norm(normal(2, 2), normal(2), 1e-5).isfinite().all()
    finally:
        cpu._load.cache_clear()


def test_kernels_take_only_what_they_are_made_for():
    assert not cpu.supports(normal(2, 2, dtype=torch.float64))
    assert not cpu.supports(normal(2, 2), normal(2, 2, dtype=torch.float32))
    assert not cpu.supports(normal(2, 2), normal(2, 2).to("meta"))


def gradients(decoder, dtype, loss):
    """Loss and gradients of all masters for two micro-batches."""
    decoder = copy.deepcopy(decoder)
    masters = make_master_weights(decoder, compute_dtype=dtype, data_parallel=False)
    masters.copy_to_compute()
    losses = [step(decoder, loss, seed) for seed in range(2)]
    return [sum(losses), *(master.grad for master in masters.by_name.values())]


def step(decoder, loss, seed):
    generator = torch.Generator().manual_seed(seed)
    tokens, labels = torch.randint(CONFIG.vocab_size, (2, sum(LENGTHS)), generator=generator)
    weights = (torch.rand(sum(LENGTHS), generator=generator) < 0.4).float()
    value = loss(decoder(tokens, PackedSequences.of(LENGTHS)), decoder.head_weight(), labels, weights) / weights.sum()
    value.backward()
    return value.detach()


@pytest.fixture
def decoder():
    made = Decoder(CONFIG)
    made.init_weights(0)
    return made


def test_a_whole_step_in_fp32(decoder, monkeypatch):
    ours = gradients(decoder, torch.float32, fast_loss)
    plainly(monkeypatch)
    torch.testing.assert_close(ours, gradients(decoder, torch.float32, plain_loss), atol=1e-5, rtol=1e-5)


def test_a_whole_step_in_bf16_is_as_good_as_the_plain_one(decoder, monkeypatch):
    ours = gradients(decoder, torch.bfloat16, fast_loss)
    plainly(monkeypatch)
    plain, exact = (gradients(decoder, dtype, plain_loss) for dtype in (torch.bfloat16, torch.float32))
    for fast, slow, right in zip(ours, plain, exact, strict=True):
        assert relative_error(fast, right) < max(1.5 * relative_error(slow, right), 3e-3)


def loss_curve(decoder, dtype, loss):
    decoder = copy.deepcopy(decoder)
    masters: MasterWeights = make_master_weights(decoder, compute_dtype=dtype, data_parallel=False)
    masters.copy_to_compute()
    optimizer = torch.optim.AdamW(masters.by_name.values(), lr=3e-3, fused=True)
    losses = []
    for iteration in range(20):
        losses.append(step(decoder, loss, iteration % 4))
        optimizer.step()
        masters.copy_to_compute()
        masters.zero_grad()
    return torch.stack(losses).float()


def test_twenty_iterations_in_fp32(decoder, monkeypatch):
    ours = loss_curve(decoder, torch.float32, fast_loss)
    plainly(monkeypatch)
    plain = loss_curve(decoder, torch.float32, plain_loss)
    assert plain[-1] < 0.9 * plain[0]
    torch.testing.assert_close(ours, plain, atol=2e-4, rtol=2e-4)


def test_twenty_iterations_in_bf16(decoder, monkeypatch):
    ours = loss_curve(decoder, torch.bfloat16, fast_loss)
    plainly(monkeypatch)
    plain, exact = (loss_curve(decoder, dtype, plain_loss) for dtype in (torch.bfloat16, torch.float32))
    assert (ours - exact).abs().max() < max(1.5 * (plain - exact).abs().max(), 0.01)
