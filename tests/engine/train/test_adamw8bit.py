"""AdamW with moments in 8 bits against torch's AdamW: the same first update, and near it after many."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from medsft.core.engine.kernels.adamw8 import example, update_rows
from medsft.core.engine.kernels.dynamic8 import dequantize_matrix, table
from medsft.core.engine.train.adamw8bit import AdamW8bit, is_quantized, new_state, reblock, saved_scales

OPTIONS: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8}


def made(dtype=torch.float32):
    """Two matrices and a vector: one whose blocks are equally long, one whose last block is shorter, and one without blocks."""
    draw = torch.Generator().manual_seed(0)
    shapes = {"wide": (24, 1024), "odd": (600, 301), "narrow": (64, 16), "vector": (300,)}
    return {name: nn.Parameter((torch.randn(shape, generator=draw) * 0.02).to(dtype)) for name, shape in shapes.items()}


def groups(named):
    return [
        {"params": [p for p in named.values() if p.ndim == 2], "weight_decay": 0.1},
        {"params": [p for p in named.values() if p.ndim == 1], "weight_decay": 0.0},
    ]


def give_gradients(*models, step):
    """Gradients whose size differs from number to number, and that have a direction."""
    for name, first in models[0].items():
        draw = torch.Generator().manual_seed(step)
        size = 10 ** (torch.rand(first.shape, generator=torch.Generator().manual_seed(7)) - 4)
        gradient = (torch.randn(first.shape, generator=draw) + 0.5) * size
        for model in models:
            model[name].grad = gradient.to(model[name].dtype)


def kind_of(moment):
    return table(moment == "exp_avg", torch.device("cpu"))


def values_of(optimizer, parameter, moment):
    state = optimizer.state[parameter]
    scales = state.get(moment + "_scale")
    return state[moment] if scales is None else dequantize_matrix(state[moment], scales, kind_of(moment))


def test_it_stays_near_adamw():
    exact, quantized = made(), made()
    adamw = torch.optim.AdamW(groups(exact), **OPTIONS)
    adamw8bit = AdamW8bit(groups(quantized), quantized, seed=1, **OPTIONS)
    before = {name: p.detach().clone() for name, p in exact.items()}
    for step in range(50):
        give_gradients(exact, quantized, step=step)
        adamw.step()
        adamw8bit.step()
        if step == 0:  # by moments that no quantization has touched
            for name, parameter in exact.items():
                torch.testing.assert_close(quantized[name], parameter, rtol=1e-5, atol=1e-7)
    for name, parameter in exact.items():
        other = quantized[name]
        moved = (parameter - before[name]).norm()
        if not is_quantized(parameter.shape):
            torch.testing.assert_close(other, parameter, rtol=1e-4, atol=1e-6)
            continue
        assert 0 < (other - parameter).norm() / moved < 0.03
        for moment, limit in (("exp_avg", 0.03), ("exp_avg_sq", 0.03)):
            expected, found = adamw.state[parameter][moment], values_of(adamw8bit, other, moment)
            assert (found - expected).norm() / expected.norm() < limit


def test_weights_in_bf16_move_as_far_as_those_in_fp32():
    """By updates of a tenth of the distance of two numbers of bf16, which rounding to the nearest loses."""
    rates: dict[str, Any] = {"lr": 1e-5, "betas": (0.9, 0.95), "eps": 1e-8}
    exact = {"w": nn.Parameter(torch.full((128, 256), 0.02).bfloat16().float())}
    rounded = {"w": nn.Parameter(exact["w"].detach().bfloat16())}
    adamw = torch.optim.AdamW(exact.values(), weight_decay=0.0, **rates)
    adamw8bit = AdamW8bit([{"params": [rounded["w"]]}], rounded, seed=1, **rates)
    start = exact["w"].detach().clone()
    for _ in range(60):
        exact["w"].grad, rounded["w"].grad = torch.ones(128, 256), torch.ones(128, 256, dtype=torch.bfloat16)
        adamw.step()
        adamw8bit.step()
    wanted, found = (exact["w"] - start).mean().item(), (rounded["w"].float() - start).mean().item()
    assert found == pytest.approx(wanted, rel=0.02)
    assert wanted == pytest.approx(-6e-4, rel=0.01)


def test_it_goes_on_bit_for_bit():
    straight, stopped = made(torch.bfloat16), made(torch.bfloat16)
    first = AdamW8bit(groups(straight), straight, seed=1, **OPTIONS)
    second = AdamW8bit(groups(stopped), stopped, seed=1, **OPTIONS)
    for step in range(6):
        if step == 3:  # as a resume does: another optimizer, with the state of the one before
            later = AdamW8bit(groups(stopped), stopped, seed=1, **OPTIONS)
            for parameter in stopped.values():
                later.state[parameter] = {name: part.clone() for name, part in second.state[parameter].items()}
            second = later
        give_gradients(straight, stopped, step=step)
        first.step()
        second.step()
    for name, parameter in straight.items():
        assert torch.equal(stopped[name], parameter)


def test_another_division_of_the_columns_is_read():
    weight = nn.Parameter(torch.zeros(40, 1024))
    optimizer = AdamW8bit([{"params": [weight]}], {"w": weight}, seed=1, **OPTIONS)
    weight.grad = torch.randn(40, 1024, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    state = optimizer.state[weight]
    for moment in ("exp_avg", "exp_avg_sq"):
        expected = values_of(optimizer, weight, moment)
        other = new_state(weight)
        other[moment].copy_(state[moment])
        # Two halves of 512 columns have the blocks of the whole, so nothing changes.
        scales = saved_scales(weight, (40, 2, 2))
        scales.copy_(state[f"{moment}_scale"].view(40, 2, 2))
        reblock(weight, other, moment, scales)
        assert torch.equal(other[f"{moment}_scale"], state[f"{moment}_scale"])
        assert torch.equal(other[moment], state[moment])
        # Sixteen parts of 64 columns have more blocks than the whole: the new ones are coarser.
        scales = saved_scales(weight, (40, 16, 1))
        scales.copy_(state[f"{moment}_scale"].view(40, 4, 1).repeat_interleave(4, 1))
        other[moment].copy_(state[moment])
        reblock(weight, other, moment, scales)
        assert torch.equal(dequantize_matrix(other[moment], other[f"{moment}_scale"], kind_of(moment)), expected)


def filled(rows, columns, dtype):
    """Arguments of an update, with numbers in them."""
    weight, gradient, first, second, coefficients, betas, bits = example(rows, columns, torch.device("cpu"), dtype)
    draw = torch.Generator().manual_seed(columns)
    weight.copy_(torch.randn(rows, columns, generator=draw) * 0.02)
    gradient.copy_(torch.randn(rows, columns, generator=draw) * 1e-4)
    for moment in (first, second):
        moment.codes.copy_(torch.randint(0, 256, (rows, columns), generator=draw))
        moment.scales.copy_(torch.rand(moment.scales.shape, generator=draw) * 1e-4)
    return weight, gradient, first, second, coefficients, betas, bits


def test_torch_can_compile_an_update_as_one_graph_for_all_sizes():
    """In a process of its own: with a torch that was built for CUDA, none could be forked after a backward pass any more."""
    mp.start_processes(_compile_updates, nprocs=1, start_method="fork")


def _compile_updates(_: int) -> None:
    graphs, dtype = [], torch.bfloat16

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(update_rows, backend=backend, dynamic=True, fullgraph=True)
    for rows, columns in ((4, 512), (7, 512), (16, 1024), (3, 14336)):
        one, other = filled(rows, columns, dtype), filled(rows, columns, dtype)
        update_rows(*one)
        compiled(*other)
        for expected, found in ((one[0], other[0]), *zip(one[2][:2] + one[3][:2], other[2][:2] + other[3][:2], strict=True)):
            torch.testing.assert_close(expected, found)
    assert len(graphs) == 1
