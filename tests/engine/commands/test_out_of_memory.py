"""Every form in which memory that does not suffice is told, as the libraries write it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from medsft.core.engine.commands import out_of_memory
from medsft.core.engine.commands.out_of_memory import is_out_of_memory
from medsft.core.engine.commands.worker import describe
from medsft.core.planning.device_concerns import less_memory
from medsft.core.run.causes import says_out_of_memory
from medsft.errors import ExitCode

NCCL = """NCCL error in: ProcessGroupNCCL.cpp:3690, unhandled cuda error (run with NCCL_DEBUG=INFO for details)
ncclUnhandledCudaError: Call to CUDA function failed.
Last error:
Cuda failure 2 'out of memory'"""
FORMS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB"),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported at some other API call"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    torch.distributed.DistBackendError(NCCL),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("std::bad_alloc"),
    MemoryError(),
    OSError(12, "Cannot allocate memory"),
]
OTHERS = [
    torch.distributed.DistBackendError("NCCL error: remote process exited or there was a network error"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
    ValueError("out of memory"),
]


@pytest.mark.parametrize("error", FORMS, ids=lambda error: f"{type(error).__name__} {str(error)[:40]}")
def test_forms(error: BaseException, tmp_path: Path) -> None:
    assert is_out_of_memory(error)
    failure = describe(error, tmp_path)
    assert failure.reason.startswith("Out of memory")
    assert "--micro_batch" in failure.remedy
    assert "medsft plan" in failure.remedy
    assert failure.exit_code == ExitCode.TRAINING
    assert says_out_of_memory(failure.reason), "or it would pass for a consequence of another rank's error"


def test_what_an_error_was_raised_from() -> None:
    outer = RuntimeError("the save failed")
    outer.__cause__ = MemoryError()
    assert is_out_of_memory(outer)


@pytest.mark.parametrize("error", OTHERS, ids=lambda error: str(error)[:40])
def test_other_errors(error: BaseException) -> None:
    assert not is_out_of_memory(error)


def plan(micro_batch: int, recompute: str) -> Any:
    return SimpleNamespace(micro_batch=micro_batch, recompute=recompute, train=SimpleNamespace(longest=2049))


def test_sizes_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"max_memory_allocated": 70 << 30, "max_memory_reserved": 78 << 30}
    for name, size in sizes.items():
        monkeypatch.setattr(torch.cuda, name, lambda _, size=size: size)
    for name in ("is_available", "is_initialized"):
        monkeypatch.setattr(torch.cuda, name, lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=79 << 30))
    failure = out_of_memory.out_of_memory(plan(4, "none"))
    assert failure.reason == (
        "Out of memory on GPU 3 (NVIDIA H100): at most 70.0 GiB in tensors and 78.0 GiB reserved, of 79.0 GiB. "
        "A micro-batch has about 4 documents, the longest document 2,049 tokens."
    )
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: (_ for _ in ()).throw(RuntimeError("device lost")))
    assert "this process has used" in out_of_memory.out_of_memory(plan(4, "none")).reason


def test_only_what_asks_for_less_is_advised() -> None:
    assert less_memory(plan(4, "none")) == "a smaller --micro_batch, --recompute full, or more --tp or --pp"
    assert less_memory(plan(1, "selective")) == "--recompute full, or more --tp or --pp"
    assert less_memory(plan(1, "full")) == "more --tp or --pp"
    assert less_memory(cast(Any, None)) == "a smaller --micro_batch, --recompute full, or more --tp or --pp"
