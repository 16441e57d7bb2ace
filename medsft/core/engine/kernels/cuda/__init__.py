"""A GPU's fused steps of a layer, by libraries: norms by torch's own kernels; SwiGLU and rotation by those of `liger-kernel`.

None was run on a GPU yet. `MEDSFT_REFERENCE_KERNELS=1` in the environment keeps all of them out.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from medsft.core.engine.kernels.cuda import liger
from medsft.core.engine.kernels.reference import reference_only

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def takes(*tensors: Tensor) -> bool:
    """Return whether the kernels take these tensors: on a GPU, of one dtype, none a DTensor or the like."""
    dtype = tensors[0].dtype
    if not tensors[0].is_cuda or dtype not in _DTYPES or reference_only():
        return False
    return all(t.is_cuda and t.dtype == dtype and not is_traceable_wrapper_subclass(t) for t in tensors)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `Norms.rms_norm`. Rounded once, at the end; 1 / rms(x) is [..., 1]."""
    return torch.ops.aten._fused_rms_norm(x, weight.shape, weight, eps)


def rms_norm_backward(x: Tensor, weight: Tensor, inverse: Tensor, grad: Tensor) -> tuple[Tensor, Tensor | None]:
    """See `Norms.rms_norm_backward`."""
    wanted = [True, weight.requires_grad]
    grad_x, grad_weight = torch.ops.aten._fused_rms_norm_backward(grad, x, weight.shape, inverse, weight, wanted)
    return grad_x, grad_weight if weight.requires_grad else None


def identity(device: torch.device) -> str:
    """Return what is used on a GPU beside torch's separate operations, for the record of a run's arithmetic."""
    if reference_only():
        return ""
    found = liger.on_device(device)
    return f"fused norms, Liger {found.version}" if found.works else "fused norms"


def problem(device: torch.device) -> str:
    """Return what is wrong with an installed library on a GPU, empty where nothing is."""
    return "" if reference_only() else liger.on_device(device).problem
