"""What torch can do on this machine, as JSON: `python -m medsft.core.engine.commands.doctor`."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from medsft.core.engine.commands.entry_point import run_process

_SIZE = {"cpu": 1024, "cuda": 8192}
"""Of the square matrices: a GPU needs 8,192 to reach its rate, a processor takes a minute for that."""
_SMALL_SIZE = {"cpu": 128, "cuda": 2048}
"""On a processor that imitates a number format at a thousandth of the rate, and on a GPU whose memory others have taken."""
_SECONDS = 0.3
_MOST_CALLS = 1000
_LENGTHS, _HEADS, _HEAD_DIM = (2048,) * 4, (32, 8), 128
"""Attention as a layer of Llama 3 8B has it, over four documents."""


def torch_facts() -> dict[str, Any]:
    """Return devices, communication backends, and the speed of matrix products in TFLOP/s, by number format.

    On a GPU also the time of attention with its backward pass, or why it fails: no run trains without it.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backends = {"gloo": dist.is_gloo_available(), "nccl": dist.is_nccl_available()} if dist.is_available() else {}
    facts = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "gpus": torch.cuda.device_count(),
        "threads": torch.get_num_threads(),
        "backends": ", ".join(name for name, available in backends.items() if available) or "none",
        "tflops_fp32": _tflops(torch.float32, device),
        "tflops_bf16": _tflops(torch.bfloat16, device),
    }
    return facts | (attention_facts(device, _LENGTHS) if device.type == "cuda" else {})


def attention_facts(device: torch.device, lengths: Sequence[int]) -> dict[str, Any]:
    """Return the milliseconds of attention forward and backward over documents of these lengths, or the error that it raises.

    In the number format that `--precision auto` computes in on this device.
    """
    from medsft.core.engine.nn.attention import PackedSequences, attend

    bf16 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    dtype = torch.bfloat16 if bf16 else torch.float32
    heads, kv_heads = _HEADS
    try:
        sequences = PackedSequences.of(lengths, device)
        q, k, v = (
            torch.randn(sum(lengths), count, _HEAD_DIM, device=device, dtype=dtype).requires_grad_()
            for count in (heads, kv_heads, kv_heads)
        )
        seconds = seconds_per_call(lambda: attend(q, k, v, sequences).sum().backward(), device)
        if not all(tensor.grad is not None and bool(tensor.grad.isfinite().all()) for tensor in (q, k, v)):
            return {"attention_failed": "its gradients are not finite"}
    except Exception as error:  # whatever it is: this is where a person asks why nothing can be trained
        first, *_ = [*str(error).splitlines(), ""]
        return {"attention_failed": f"{type(error).__name__}: {first}"}
    return {"attention_ms": _three_digits(seconds * 1e3)}


def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Return the rate of square matrix products in FLOP/s, measured over about a third of a second. 2 n^3 operations each."""
    size, small = _SIZE[device.type], _SMALL_SIZE[device.type]
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] < 8 * 4 * size**2:
        size = small
    if device.type == "cpu":
        seconds = _seconds_of_product(small, dtype, device)
        if seconds * (size / small) ** 3 > _SECONDS:
            return 2 * small**3 / seconds
    return 2 * size**3 / _seconds_of_product(size, dtype, device)


def _seconds_of_product(size: int, dtype: torch.dtype, device: torch.device) -> float:
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return seconds_per_call(lambda: left @ right, device)


def seconds_per_call(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call, the mean of as many as take a third of a second.

    On a GPU they are queued one behind the other and timed by the device itself, so that it waits for the host only where a
    launch takes longer than the work.
    """
    call()  # the first also chooses the kernel
    once = _timed(call, device, 1)
    return once if once >= _SECONDS else _timed(call, device, min(_MOST_CALLS, math.ceil(_SECONDS / max(once, 1e-9))))


def _timed(call: Callable[[], object], device: torch.device, count: int) -> float:
    """Return the mean seconds of `count` calls."""
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        begin.record()
        for _ in range(count):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / count
    began = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - began) / count


def _tflops(dtype: torch.dtype, device: torch.device) -> float:
    return _three_digits(matmul_rate(dtype, device) / 1e12)


def _three_digits(number: float) -> float:
    """Return the number as far as it was measured, however slow or fast the device is."""
    return float(f"{number:.3g}")


def main(_arguments: list[str]) -> None:
    """Entry point of the process."""
    print(json.dumps(torch_facts()))  # noqa: T201 - its result


if __name__ == "__main__":
    sys.exit(run_process(main))
