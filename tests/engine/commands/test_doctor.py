"""What `medsft doctor` asks of torch: rates of products, and attention where there is a GPU."""

from __future__ import annotations

import pytest
import torch

from medsft.core.engine.commands import doctor
from medsft.core.engine.nn import attention

CPU = torch.device("cpu")


def test_it_measures_products_and_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_SIZE", {"cpu": 64})
    monkeypatch.setattr(doctor, "_SECONDS", 0.01)
    facts = doctor.torch_facts()
    assert facts["tflops_fp32"] > 0
    assert facts["tflops_bf16"] > 0
    assert "gloo" in facts["backends"]
    assert doctor.attention_facts(CPU, (5, 3))["attention_ms"] > 0


def test_attention_that_fails_is_told_and_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_kernel(*_: object) -> None:
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.\nat line 3")

    monkeypatch.setattr(attention, "attend", no_kernel)
    facts = doctor.attention_facts(CPU, (5, 3))
    assert facts == {"attention_failed": "RuntimeError: FlashAttention only supports Ampere GPUs or newer."}


def test_gradients_that_are_no_numbers_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_SECONDS", 0.0)
    monkeypatch.setattr(attention, "attend", lambda q, k, v, _: q * k.mean() * v.mean() / 0)
    assert doctor.attention_facts(CPU, (5, 3)) == {"attention_failed": "its gradients are not finite"}


@pytest.mark.parametrize(("once", "counts"), [(0.1, [1, 3]), (2.0, [1]), (1e-9, [1, 1000])])
def test_a_call_is_timed_as_often_as_takes_a_while(monkeypatch: pytest.MonkeyPatch, once: float, counts: list[int]) -> None:
    timed: list[int] = []

    def timing(_call: object, _device: object, count: int) -> float:
        timed.append(count)
        return once

    monkeypatch.setattr(doctor, "_timed", timing)
    calls: list[int] = []
    assert doctor.seconds_per_call(lambda: calls.append(1), CPU) == once
    assert (calls, timed) == ([1], counts)  # the first call is not timed
