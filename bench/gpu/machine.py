"""What the machine is and could do at best, and whether the planner, torch and `medsft doctor` see the same devices."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from typing import Any

import torch

from bench.gpu.part import Findings, Setup
from bench.gpu.trained import peak_rate
from medsft.core.devices import find_devices
from medsft.core.engine.commands.doctor import seconds_per_call

_COPIED_BYTES = {False: 4 << 30, True: 16 << 20}
"""By whether sizes are those of tests: several times what a cache holds."""


def measure(setup: Setup, found: Findings) -> None:
    """Compare who sees which devices; measure products, copies and the waits between host and device."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    planned = find_devices()
    found.holds("the planner plans for the device that torch computes on", planned.kind == device.type, planned.kind)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        found.holds("the planner and torch count the same GPUs", planned.count == count, f"{planned.count} and {count}")
        total = torch.cuda.get_device_properties(device).total_memory
        found.at_most("their memory differs by", abs(planned.memory_bytes / total - 1), 0.05)
        found.figure("device", _device(device))
    found.figure("torch", {"version": torch.__version__, "cuda": torch.version.cuda, "git": torch.version.git_version})
    found.figure("peak_tflops", None if (peak := peak_rate()) is None else peak / 1e12)
    with found.attempt("copies on the device", right=True):
        found.figure("copy_tb_s", float(f"{_copy_rate(device, _COPIED_BYTES[setup.tiny]) / 1e12:.3g}"))
    if device.type == "cuda":
        with found.attempt("copies from the host", right=False):
            found.figure("from_host_gb_s", _from_host(device))
    with found.attempt("medsft doctor", right=True):
        _doctor(found, device)


def _device(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "total_gb": round(total / 1e9, 2),
        "taken_by_others_gb": round((total - free) / 1e9, 2),
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else None,
        "context_gb": _context_bytes(device) / 1e9,
    }


def _context_bytes(device: torch.device) -> int:
    """Return what this process takes of the card beside torch's tensors, as far as others take nothing meanwhile."""
    torch.ones(1, device=device)
    free, total = torch.cuda.mem_get_info(device)
    return total - free - torch.cuda.memory_reserved(device)


def _copy_rate(device: torch.device, size: int) -> float:
    """Return bytes a second, those that are read and those that are written."""
    one = torch.ones(size // 4, dtype=torch.int32, device=device)
    other = torch.empty_like(one)
    return 2 * size / seconds_per_call(lambda: other.copy_(one), device)


def _from_host(device: torch.device) -> dict[str, float]:
    """Return GB/s of copies to the device, from memory that the driver may read by itself (pinned) and from any other."""
    size = 1 << 30
    target = torch.empty(size, dtype=torch.uint8, device=device)
    rates = {}
    for name, pinned in (("pinned", True), ("pageable", False)):
        source = torch.ones(size, dtype=torch.uint8, pin_memory=pinned)
        rates[name] = round(size / seconds_per_call(partial(target.copy_, source), device) / 1e9, 2)
    return rates


def _doctor(found: Findings, device: torch.device) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "medsft", "doctor", "--json"], capture_output=True, text=True, timeout=120, check=False
    )
    found.holds("medsft doctor ends with 0", done.returncode == 0, done.returncode or "0")
    facts = json.loads(done.stdout)["facts"]
    found.figure("doctor", facts)
    found.holds("torch starts in it", "torch_failed" not in facts, facts.get("torch_failed", "yes"))
    if device.type == "cuda":
        failed = facts.get("torch_attention_failed")
        found.holds("attention runs in it", "torch_attention_ms" in facts, failed or f"{facts.get('torch_attention_ms')} ms")
