"""What `medsft doctor` advises, by what the machine has."""

from __future__ import annotations

import pytest

from medsft.cli import doctor
from medsft.core.devices import Devices

H100 = Devices("cuda", 8, 80 * 10**9, "NVIDIA H100", bf16=True)
LAPTOP = Devices("cpu", 8, 32 * 10**9, "a laptop", bf16=True)
FACTS = {
    **dict.fromkeys(doctor._PACKAGES, "1.0"),
    "disk_free": 1 << 40,
    "shared_memory_free": 1 << 40,
    "torch_gpus": 8,
}


@pytest.mark.parametrize(
    ("devices", "facts", "told"),
    [
        (H100, {}, None),
        (LAPTOP, {"torch_gpus": 0}, None),
        (H100, {"torch_attention_failed": "RuntimeError: no kernel"}, "Attention does not run on this GPU"),
        (H100, {"torch_gpus": 0}, "The driver shows 8 GPUs, torch none"),
        (LAPTOP, {"torch_gpus": 2}, "The driver shows no GPUs, torch 2"),
    ],
)
def test_it_says_what_keeps_a_gpu_from_training(devices: Devices, facts: dict[str, object], told: str | None) -> None:
    lines = list(doctor._advice(devices, FACTS | facts))
    found = [line for line in lines if "Attention" in line or "The driver" in line]
    assert len(found) == (told is not None), lines
    assert told is None or found[0].startswith(told)
