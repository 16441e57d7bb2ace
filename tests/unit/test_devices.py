"""What a machine computes on, as its tools say it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from medsft.core import devices, host_memory
from medsft.core import gpus as gpus_module
from medsft.core.devices import find_devices

ANSWER = """\
GPU-aaaa, NVIDIA A100-SXM4-80GB, 81920, 8.0, Disabled
GPU-aabb, NVIDIA A100-SXM4-40GB, 40960, 8.0, Disabled
GPU-cccc, Tesla V100, with a comma, 16384, 7.0, [N/A]
"""


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch):
    """An nvidia-smi that gives `ANSWER`."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{ANSWER}END\n")
    program.chmod(0o755)
    monkeypatch.setattr(gpus_module, "_is_there_a_sign", lambda: False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return program


def test_all_gpus(gpus):
    found = find_devices()
    assert (found.kind, found.count, found.name) == ("cuda", 3, "NVIDIA A100-SXM4-80GB")
    assert found.memory_bytes == 16384 << 20, "the smallest: every rank gets the same share"
    assert not found.bf16
    assert found.memory_per_rank(3) == found.memory_bytes


@pytest.mark.parametrize(
    ("visible", "memory"), [("0", [80]), ("1,0", [40, 80]), ("GPU-cc", [16]), ("0,7,1", [80]), ("0, 1", [80, 40])]
)
def test_visible_gpus(gpus, monkeypatch, visible, memory):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = find_devices()
    assert (found.count, found.memory_bytes) == (len(memory), min(memory) << 30)
    assert found.bf16 == (memory != [16])


@pytest.mark.parametrize("visible", ["", "-1", "GPU-a", "9"])
def test_hidden_gpus(gpus, monkeypatch, visible):
    """Also a UUID that is the start of two, which names none."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert find_devices().kind == "cpu"


@pytest.mark.parametrize("text", ["exit 9", "echo 'NVIDIA-SMI has failed'", "echo 'GPU-a, A100, [N/A], 8.0, Disabled'"])
def test_a_driver_that_does_not_answer(gpus, text):
    gpus.write_text(f"#!/bin/sh\n{text}\n")
    assert find_devices().kind == "cpu"


def test_a_cpu_is_shared(gpus, monkeypatch):
    gpus.unlink()
    found = find_devices()
    assert found.kind == "cpu"
    assert found.memory_per_rank(4) == found.memory_bytes // 4


@pytest.mark.parametrize(
    ("info", "bf16"),
    [
        ("flags : avx2 avx512_bf16", True),
        ("Features : fp asimd bf16", True),
        ("flags : avx2 avx512f", False),
        ("", False),
        ("vendor_id : GenuineIntel flags : avx512_bf16 avx512_fp16 amx_bf16", True),
        ("vendor_id : GenuineIntel flags : avx512_bf16 avx512_fp16", False),
        ("vendor_id : AuthenticAMD flags : avx512_bf16 avx512_fp16", True),
    ],
)
def test_bf16_of_a_cpu(gpus, monkeypatch, info, bf16):
    gpus.unlink()
    monkeypatch.setattr(devices, "text_of", lambda path: info if path == "/proc/cpuinfo" else "")
    assert find_devices().bf16 == bf16


def test_the_limit_of_a_container(gpus, monkeypatch):
    gpus.unlink()
    monkeypatch.setattr(host_memory, "text_of", lambda path: "1000000\n" if path == "/sys/fs/cgroup/memory.max" else "")
    assert find_devices().memory_bytes == 1_000_000


@pytest.mark.parametrize(
    ("says", "for_gpus"),
    [
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\nhip: Optional[str] = None\n", False),
        ("__version__ = '2.14.1+cu130'\ncuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n", True),
        ("cuda: Optional[str] = None\nhip: Optional[str] = '7.1'\n", True),
        ("cuda = None\n", False),
        ("", False),
    ],
)
def test_what_torch_was_built_for(tmp_path, monkeypatch, says, for_gpus):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('it is not to be imported')")
    (tmp_path / "torch" / "version.py").write_text(says)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert devices.torch_is_for_gpus() == for_gpus
    (tmp_path / "torch").rename(tmp_path / "elsewhere")
    importlib.invalidate_caches()
    assert not devices.torch_is_for_gpus()
