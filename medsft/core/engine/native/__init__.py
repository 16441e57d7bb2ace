"""Element-wise steps on the CPU in bf16, each in one pass over memory: `kernels.c`, compiled when they are first wanted.

Compiling takes well below a second and is done for the very processor that runs it, so nothing is cached or shipped. Without
a C compiler, and for everything but bf16 in plain tensors on a CPU, `takes` says no and callers use tensor operations.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

_SOURCE = Path(__file__).with_name("kernels.c")
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")
_PARTS = 16
"""Rows whose gradients of a weight are summed on their own: fixed, so that the result does not depend on the threads."""


def takes(*tensors: Tensor) -> bool:
    """Return whether the functions below take these tensors here."""
    plain = all(type(t) in (Tensor, nn.Parameter) and t.dtype == torch.bfloat16 and t.device.type == "cpu" for t in tensors)
    return plain and library() is not None


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """Compile and load the kernels; None where there is no compiler that can."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not _SOURCE.exists():
        return None
    try:
        # Only with the OpenMP library that torch has loaded: with a second one, two pools of threads would fight for the cores.
        ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD)
        with tempfile.TemporaryDirectory(prefix="medsft-") as folder:
            target = Path(folder) / "kernels.so"
            command = [*compiler.split(), *_FLAGS, "-o", str(target), str(_SOURCE), "-lm"]
            subprocess.run(command, check=True, capture_output=True, timeout=60)
            return ctypes.CDLL(str(target))
    except (OSError, AttributeError, subprocess.SubprocessError):
        return None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return (x / rms(x) * weight, 1 / rms(x) as fp32 [rows]) for x [..., size]."""
    x, weight = x.contiguous(), weight.contiguous()
    rows, size = x.numel() // len(weight), len(weight)
    out, inverse = torch.empty_like(x), torch.empty(rows)
    _call("rms_norm_forward", x, weight, out, inverse, rows, size, ctypes.c_float(eps))
    return out, inverse


def rms_norm_backward(x: Tensor, weight: Tensor, inverse: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and, in the dtype of `weight`, of `weight`."""
    x, weight, grad = x.contiguous(), weight.contiguous(), grad.contiguous()
    grad_x, grad_weight = torch.empty_like(x), torch.empty(_PARTS, len(weight))
    _call("rms_norm_backward", x, weight, inverse, grad, grad_x, grad_weight, len(inverse), len(weight), _PARTS)
    return grad_x, grad_weight.sum(0).to(weight.dtype)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up."""
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    _call("swiglu_forward", gate, up, out, gate.numel())
    return out


def swiglu_backward(gate: Tensor, up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of gate and up."""
    gate, up, grad = gate.contiguous(), up.contiguous(), grad.contiguous()
    grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(up)
    _call("swiglu_backward", gate, up, grad, grad_gate, grad_up, gate.numel())
    return grad_gate, grad_up


def causal_softmax_(scores: Tensor, tokens: int, window: int | None) -> Tensor:
    """Turn contiguous `scores` [heads, tokens * group, keys] into probabilities, in place.

    The last `tokens` keys are the rows' own; a row sees the keys up to its own, at most `window` of them.
    """
    heads, rows, keys = scores.shape
    _call("causal_softmax", scores, heads, tokens, rows // tokens, keys, window or 0)
    return scores


def causal_softmax_backward_(scores: Tensor, grad: Tensor, tokens: int, window: int | None) -> None:
    """Turn `scores` into probabilities as above, and `grad` from their gradient into that of the scores, both in place."""
    heads, rows, keys = scores.shape
    _call("causal_softmax_backward", scores, grad, heads, tokens, rows // tokens, keys, window or 0)


def cross_entropy_(logits: Tensor, labels: Tensor) -> Tensor:
    """Return -log softmax(logits)[labels], fp32 [rows]; contiguous `logits` become its gradient by them, in place.

    Raises IndexError for a label that is not a column.
    """
    rows, columns = logits.shape
    if rows and not 0 <= int(labels.min()) <= int(labels.max()) < columns:
        raise IndexError(f"a label is not below {columns}")
    nll = torch.empty(rows)
    _call("cross_entropy", logits, labels.contiguous(), nll, rows, columns)
    return nll


def _call(name: str, *arguments: Tensor | int | ctypes.c_float) -> None:
    loaded = library()
    assert loaded is not None, "ask `takes` first"
    values = [
        ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else ctypes.c_int64(a) if isinstance(a, int) else a
        for a in arguments
    ]
    getattr(loaded, name)(*values)
