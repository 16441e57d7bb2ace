"""What to say of a rank, or an engine process, whose memory did not suffice: sizes, and which flag asks for less."""

from __future__ import annotations

import resource
from contextlib import suppress

import torch

from medsft.core.host_memory import usable_memory
from medsft.core.planning.device_concerns import less_memory
from medsft.core.planning.plan import RunPlan
from medsft.core.run.causes import says_out_of_memory
from medsft.core.units import byte_size, counted
from medsft.errors import Failure


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception, or what it was raised from, means that memory did not suffice.

    torch raises `OutOfMemoryError` where its own allocator fails, and `AcceleratorError`, `DistBackendError` or a plain
    `RuntimeError` with the text of the library where CUDA, cuBLAS, cuDNN or NCCL take memory themselves.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (MemoryError, torch.OutOfMemoryError)):
            return True
        if isinstance(cause, (RuntimeError, OSError)) and says_out_of_memory(str(cause)):
            return True
        cause = cause.__cause__
    return False


def out_of_memory(plan: RunPlan | None) -> Failure:
    """Return the failure of a rank that trains `plan`, with the sizes that are known, and what takes less memory."""
    sizes = f"Out of memory{_used()}."
    if plan is not None:
        each, longest = counted(plan.micro_batch, "document"), counted(plan.train.longest, "token")
        sizes += f" A micro-batch has about {each}, the longest document {longest}."
    return Failure(sizes, f"Use {less_memory(plan)}; `medsft plan` shows the need.")


def _used() -> str:
    """Return the peak of this process and the memory there is; nothing where the device does not answer any more."""
    with suppress(Exception):  # of a device in whatever state
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            number = torch.cuda.current_device()
            allocated, reserved = torch.cuda.max_memory_allocated(number), torch.cuda.max_memory_reserved(number)
            total = torch.cuda.get_device_properties(number).total_memory
            name = torch.cuda.get_device_name(number)
            in_use = f"at most {byte_size(allocated)} in tensors and {byte_size(reserved)} reserved"
            return f" on GPU {number} ({name}): {in_use}, of {byte_size(total)}"
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    of = f"the machine, or its container, has {byte_size(usable_memory())}"
    return f": this process has used {byte_size(resident)} at most, {of}"
