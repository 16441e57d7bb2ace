"""What is computed again in the backward pass is not kept, and changes no number."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from medsft.core.engine.nn.dtensor import local_part
from medsft.core.engine.nn.model import MLP
from medsft.core.engine.nn.recompute import recompute_in_backward
from medsft.core.engine.parallel.sharding import BY_COLUMNS, BY_ROWS, divide

TOKENS = 64


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture
def mlp(tiny):
    torch.manual_seed(0)
    return MLP(tiny.config())


def kept_and_gradients(module, hidden_size, *, lean):
    """Return the bytes that a forward pass keeps beside what it returns, and the gradients after it."""
    x = normal(TOKENS, hidden_size).requires_grad_()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        out = module(x, lean=lean)
    kept = sum(event.self_cpu_memory_usage for event in recorded.key_averages())
    parameters = list(module.parameters())
    gradients = torch.autograd.grad(local_part(out).square().sum(), [x, *parameters])
    return kept - local_part(out).nbytes, [local_part(gradient) for gradient in gradients]


def check_that_the_product_is_not_kept(module, config, *, ranks):
    kept, gradients = kept_and_gradients(module, config.hidden_size, lean=False)
    lean_kept, lean_gradients = kept_and_gradients(module, config.hidden_size, lean=True)
    assert kept - lean_kept == 4 * TOKENS * config.intermediate_size // ranks
    # Before torch 2.13 the ranks that are made up hand over nothing: what was not written is NaN.
    torch.testing.assert_close(lean_gradients, gradients, rtol=0, atol=0, equal_nan=torch.__version__ < "2.13")


def test_the_product_of_gate_and_up_is_not_kept(mlp, tiny):
    check_that_the_product_is_not_kept(mlp, tiny.config(), ranks=1)


def test_nor_by_a_tensor_parallel_rank(mlp, tiny, two_tensor_ranks):
    divide(mlp.gate_proj, two_tensor_ranks, BY_ROWS)
    divide(mlp.up_proj, two_tensor_ranks, BY_ROWS)
    divide(mlp.down_proj, two_tensor_ranks, BY_COLUMNS)
    check_that_the_product_is_not_kept(mlp, tiny.config(), ranks=2)


def test_it_is_computed_once_for_all_that_need_it():
    x, weight = normal(5, 4).requires_grad_(), normal(4, 3).requires_grad_()
    doubled, times = 2 * x, []

    def compute():
        times.append(1)
        return 2 * x.detach()

    with recompute_in_backward(doubled, compute):
        out = (doubled @ weight).sum() + (doubled * weight[0, 0]).sum()
    assert not times
    out.backward()
    assert len(times) == 1
    expected = torch.autograd.grad((2 * x @ weight).sum() + (2 * x * weight[0, 0]).sum(), [x, weight])
    torch.testing.assert_close([x.grad, weight.grad], list(expected))
