"""GPUs as the tools of real machines tell of them: what nvidia-smi says, and what is asked of torch where it says nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from medsft.core import gpus
from medsft.core.devices import find_devices
from medsft.core.gpus import Gpu, visible_gpus

H100 = "\n".join(f"GPU-{n}f2c4, NVIDIA H100 80GB HBM3, 81559, 9.0, Disabled" for n in range(8))
T4 = "GPU-71d0, Tesla T4, 15360, 7.5, [N/A]"
GH200 = "GPU-8ab1, NVIDIA GH200 480GB, [N/A], 9.0, Disabled"
GB10 = "GPU-55e0, NVIDIA GB10, [N/A], 12.1, [N/A]"
A100_DIVIDED = """\
GPU-5c89, NVIDIA A100-SXM4-40GB, 40960, 8.0, Enabled
GPU-77aa, NVIDIA A100-SXM4-40GB, 40960, 8.0, Disabled
"""
LISTED = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5c89)
  MIG 3g.20gb     Device  0: (UUID: MIG-7089)
  MIG 1g.5gb      Device  1: (UUID: MIG-24c1)
  MIG 1c.2g.10gb  Device  2: (UUID: MIG-GPU-5c89/3/0)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-77aa)
"""
MI300 = Gpu("AMD Instinct MI300X", 205_822_885_888, 9.4, bf16=True)
SLICE = "NVIDIA A100-SXM4-40GB MIG"


class Machine:
    """An nvidia-smi that says what is set, none by default, and a torch that sees what is set."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.asked, self.torch = folder, 0, tuple[Gpu, ...]()
        monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")
        for name in gpus._VISIBLE:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(gpus, "_asked_of_torch", self._ask)
        self.sign(monkeypatch, True)

    def _ask(self, _: object) -> tuple[Gpu, ...]:
        self.asked += 1
        return self.torch

    def sign(self, monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
        monkeypatch.setattr(gpus, "_is_there_a_sign", lambda: there)

    def says(self, answer: str, listed: str = "") -> None:
        script = f"#!/bin/sh\nif [ $1 = -L ]; then cat <<'END'\n{listed}\nEND\nelse cat <<'END'\n{answer}\nEND\nfi\n"
        (self.folder / "nvidia-smi").write_text(script)
        (self.folder / "nvidia-smi").chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_a_node_of_eight(machine: Machine) -> None:
    machine.says(H100)
    found = find_devices()
    assert (found.kind, found.count, found.memory_bytes, found.bf16) == ("cuda", 8, 81559 << 20, True)
    assert found.capability == 9.0
    assert not machine.asked


def test_a_card_without_bf16(machine: Machine) -> None:
    machine.says(T4)
    found = find_devices()
    assert (found.kind, found.name, found.bf16, found.capability) == ("cuda", "Tesla T4", False, 7.5)


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, [f"{SLICE} 3g.20gb"]),
        ("0", [f"{SLICE} 3g.20gb"]),
        ("1", ["NVIDIA A100-SXM4-40GB"]),
        ("1,0", [f"{SLICE} 3g.20gb"]),
        ("MIG-24c1", [f"{SLICE} 1g.5gb"]),
        ("MIG-24c1,MIG-7089", [f"{SLICE} 1g.5gb"]),
        ("MIG-GPU-5c89/3/0", [f"{SLICE} 1c.2g.10gb"]),
        ("MIG-ffff", []),
        ("GPU-77aa", ["NVIDIA A100-SXM4-40GB"]),
    ],
)
def test_slices(machine: Machine, monkeypatch: pytest.MonkeyPatch, visible: str | None, names: list[str]) -> None:
    """A process sees one of them, and beside one no whole GPU."""
    machine.says(A100_DIVIDED, LISTED)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = visible_gpus()
    assert [gpu.name for gpu in found] == names
    sizes = {f"{SLICE} 3g.20gb": 20, f"{SLICE} 1g.5gb": 5, f"{SLICE} 1c.2g.10gb": 10, "NVIDIA A100-SXM4-40GB": 40.96 * 1.048576}
    assert [gpu.memory_bytes / 1e9 for gpu in found] == [pytest.approx(sizes[name]) for name in names]
    assert all(gpu.bf16 for gpu in found)
    assert not machine.asked


def test_a_gpu_in_mig_mode_without_slices_is_not_there(machine: Machine) -> None:
    machine.says(A100_DIVIDED.splitlines()[0], LISTED.splitlines()[0])
    assert visible_gpus() == []


@pytest.mark.parametrize("answer", [GH200, GB10, "NVIDIA-SMI has failed because it could not talk to the driver.", None])
def test_what_nvidia_smi_does_not_tell_is_asked_of_torch(machine: Machine, answer: str | None) -> None:
    if answer is not None:
        machine.says(answer)
    machine.torch = (Gpu("NVIDIA GH200 480GB", 101_468_602_368, 9.0, bf16=True),)
    found = find_devices()
    assert (found.kind, found.count, found.memory_bytes) == ("cuda", 1, 101_468_602_368)
    assert machine.asked == 1


def test_rocm(machine: Machine) -> None:
    machine.torch = (MI300,) * 4
    found = find_devices()
    assert (found.kind, found.count, found.name, found.bf16) == ("cuda", 4, MI300.name, True)


def test_torch_is_not_asked_without_a_sign(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.torch = (MI300,)
    machine.sign(monkeypatch, False)
    assert find_devices().kind == "cpu"
    machine.sign(monkeypatch, True)
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert find_devices().kind == "cpu"
    assert not machine.asked


def test_what_is_a_sign(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in gpus._VISIBLE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(gpus, "Path", lambda _: tmp_path)
    assert not gpus._is_there_a_sign()
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "0")
    assert gpus._is_there_a_sign()
    monkeypatch.delenv("HIP_VISIBLE_DEVICES")
    (tmp_path / "nvidiactl").touch()  # a driver, but no GPU in this container
    assert not gpus._is_there_a_sign()
    for device in ("nvidia3", "kfd", "dxg"):
        (tmp_path / device).touch()
        assert gpus._is_there_a_sign()
        (tmp_path / device).unlink()


def test_torch_itself_answers() -> None:
    """With a build for CPUs, that there is none; the fields are those that are read."""
    command = [sys.executable, "-m", "medsft.core.engine.commands.gpus"]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert [gpus._from_torch(raw) for raw in told] == list(gpus._asked_of_torch(("of this test",)))
    raw = {"name": MI300.name, "memory_bytes": MI300.memory_bytes, "capability": 9.4, "bf16": True}
    assert gpus._from_torch(raw) == MI300
