"""The time of an operator counts for the kind of work around it: bench/operators.py."""

from __future__ import annotations

import torch
from torch.profiler import profile

from bench import operators
from medsft.core.engine.nn.attention import PackedSequences, attend
from medsft.core.engine.nn.fused import rms_norm


def test_operators_inside_a_function_of_our_own_count_for_it() -> None:
    x, weight = torch.randn(64, 48).double().requires_grad_(), torch.randn(48).double().requires_grad_()
    q = torch.randn(9, 4, 16, requires_grad=True)
    with profile(activities=operators.activities()) as seen:
        (rms_norm(x, weight, 1e-5) @ torch.randn(48, 64).double()).sum().backward()
        attend(q, q, q, PackedSequences.of((5, 4))).sum().backward()
    found = operators.read(seen)
    assert found.groups["norms, SwiGLU, rotation"] > 0
    assert found.groups["products"] > 0
    assert found.groups["attention"] > 0
    assert found.groups[operators.REST] > 0
    assert (
        sum(found.groups.values()) == sum(found.operators.values())
        or abs(sum(found.groups.values()) / sum(found.operators.values()) - 1) < 1e-6
    )
    assert found.kernels == 0 or torch.cuda.is_available()
