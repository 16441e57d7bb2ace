"""The device of a rank against that of its plan, with a torch that sees what is set."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from medsft.core.engine.parallel.device import rank_device
from medsft.errors import ExitCode, LaunchError, MismatchError


@pytest.fixture
def see(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have torch see so many GPUs, built for CUDA or ROCm or neither."""

    def set_(gpus: int, *, cuda: str | None = "13.0", hip: str | None = None, local_rank: int = 0) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100")
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setenv("LOCAL_RANK", str(local_rank))

    return set_


def test_the_planned_kind(see) -> None:
    see(0)
    assert rank_device("cpu") == rank_device() == torch.device("cpu")
    see(8, local_rank=7)
    assert rank_device("cuda") == rank_device() == torch.device("cuda", 7)


@pytest.mark.parametrize(
    ("built", "said"),
    [
        ({"cuda": None}, "this build of torch is for CPUs alone"),
        ({"cuda": "13.0"}, "built for CUDA 13.0, which does not start"),
        ({"cuda": None, "hip": "7.0"}, "built for ROCm 7.0, which does not start"),
    ],
)
def test_a_gpu_that_torch_does_not_see(see, built: dict[str, Any], said: str) -> None:
    see(0, **built)
    with pytest.raises(MismatchError, match=said) as caught:
        rank_device("cuda")
    assert "nvidia-smi shows" in caught.value.message
    assert torch.__version__ in caught.value.message
    assert "CUDA_VISIBLE_DEVICES=" in caught.value.hint
    assert caught.value.exit_code == ExitCode.MISMATCH


def test_a_gpu_that_the_plan_did_not_see(see) -> None:
    see(1)
    with pytest.raises(MismatchError, match=r"for the CPU, and torch sees 1 GPU on .*NVIDIA H100"):
        rank_device("cpu")


def test_more_ranks_than_gpus(see) -> None:
    see(4, local_rank=4)
    with pytest.raises(LaunchError, match=r"Process 5 of .* torch sees 4 GPUs") as caught:
        rank_device("cuda")
    assert "--nproc_per_node 4" in caught.value.hint


def test_a_rank_ends_with_what_both_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan for a GPU, and a torch that is shown none."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    config, settings = tiny.plannable(tmp_path)
    plan = tiny.plan_of(config, settings)
    run = tiny.create(replace(plan, estimates=replace(plan.estimates, device_kind="cuda")))
    done = subprocess.run(
        [sys.executable, "-m", "medsft.core.engine.commands.worker", str(run.path)], capture_output=True, text=True
    )
    assert done.returncode == ExitCode.MISMATCH
    [error] = run.rank_errors()
    assert error.expected
    assert "The plan is for a GPU, which nvidia-smi shows, and torch" in error.failure.reason
