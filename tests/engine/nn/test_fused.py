from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from medsft.core.engine.nn import fused
from medsft.core.engine.nn.fused import rms_norm, rotate, swiglu


def plain_norm(x, weight):
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype)


def plain_rotate(heads, cos, sin):
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


CASES = {
    "norm": (lambda x, weight: rms_norm(x, weight, 1e-5), plain_norm, [(7, 24), (24,)]),
    "norm of heads": (lambda x, weight: rms_norm(x, weight, 1e-5), plain_norm, [(7, 3, 8), (8,)]),
    "swiglu": (swiglu, lambda gate, up: F.silu(gate) * up, [(7, 24), (7, 24)]),
    "rotate": (rotate, plain_rotate, [(7, 3, 8), (7, 1, 4), (7, 1, 4)]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_equals_plain_operations(case, dtype):
    ours, plain, shapes = case
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    differentiable = inputs[:1] if ours is rotate else inputs
    for tensor in differentiable:
        tensor.requires_grad_()
    got, want = ours(*inputs), plain(*inputs)
    weight = torch.randn(got.shape, generator=generator)
    tolerance: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.03, "rtol": 0.02}
    torch.testing.assert_close(got, want, **tolerance)
    got, want = (torch.autograd.grad((out * weight).sum(), differentiable) for out in (got, want))
    torch.testing.assert_close(got, want, **tolerance)


def test_bf16_norm_divides_in_fp32():
    # Squares of these numbers are lost in bf16 next to each other's sum.
    x = torch.cat([torch.full((1, 1), 64.0), torch.full((1, 4095), 0.5)], dim=1).bfloat16()
    exact = x.double() / x.double().square().mean().sqrt()
    assert (rms_norm(x, torch.ones(4096, dtype=torch.bfloat16), 0.0) - exact).abs().max() < 0.003 * exact.max()


@pytest.mark.parametrize("dim", [0, 1])
def test_the_norm_of_a_part_is_that_of_the_whole(dim, two_tensor_ranks):
    """What a tensor-parallel rank does, against DTensor's operations: values, gradients and where they belong."""
    x = torch.randn(6, 4, 8, generator=torch.Generator().manual_seed(1))
    weights = [DTensor.from_local(torch.full((8,), 1.5), two_tensor_ranks, [Replicate()]).requires_grad_() for _ in range(2)]
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    out = rms_norm(ours, weights[0], 1e-5)
    expected = fused._RMSNorm.apply(DTensor.from_local(theirs, two_tensor_ranks, [Shard(dim)]), weights[1], 1e-5).to_local()
    for result in (out, expected):
        (result.square() * x).sum().backward()
    torch.testing.assert_close((out, ours.grad), (expected, theirs.grad))
    gradients: list[Any] = [weight.grad for weight in weights]
    assert all(isinstance(gradient.placements[0], Partial) for gradient in gradients)
    torch.testing.assert_close(*(gradient.to_local() for gradient in gradients))
