"""What torch can do on this machine, as JSON: `python -m medsft.core.engine.commands.doctor`."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
import torch.distributed as dist

from medsft.core.engine.commands.entry_point import run_process

_SIZE = 1024
_SECONDS = 0.3


def torch_facts() -> dict[str, Any]:
    """Return devices, communication backends, and the speed of matrix products in TFLOP/s, by number format."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backends = {"gloo": dist.is_gloo_available(), "nccl": dist.is_nccl_available()} if dist.is_available() else {}
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "gpus": torch.cuda.device_count(),
        "threads": torch.get_num_threads(),
        "backends": ", ".join(name for name, available in backends.items() if available) or "none",
        "tflops_fp32": matmul_tflops(torch.float32, device),
        "tflops_bf16": matmul_tflops(torch.bfloat16, device),
    }


def matmul_tflops(dtype: torch.dtype, device: torch.device) -> float:
    """Return the rate of square matrix products, measured over about a third of a second. 2 n^3 operations each."""
    left, right = (torch.randn(_SIZE, _SIZE, device=device).to(dtype) for _ in range(2))
    left @ right  # the first call also chooses the kernel
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < _SECONDS:
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize()
        count += 1
    rate = 2 * _SIZE**3 * count / (time.perf_counter() - began) / 1e12
    return float(f"{rate:.3g}")  # three digits of it, however slow the device


def main(_arguments: list[str]) -> None:
    """Entry point of the process."""
    print(json.dumps(torch_facts()))  # noqa: T201 - its result


if __name__ == "__main__":
    sys.exit(run_process(main))
