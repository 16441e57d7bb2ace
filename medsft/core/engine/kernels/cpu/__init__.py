"""Steps of training on the CPU, compiled when they are first wanted: attention in tiles, steps in one pass, products.

They are compiled for the very processor that runs them, which takes two seconds, and kept for the next process (`compiled`).
Without a C compiler, and for everything but plain tensors on a CPU, `takes` says no and callers use tensor operations.
"""

from __future__ import annotations

import ctypes
import os
import threading
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.profiler import record_function

from medsft.core.devices import cpu_multiplies_bf16
from medsft.core.engine.kernels.cpu.compiled import Compiled, compile_or_load, processor

_SOURCES = [Path(__file__).with_name(name) for name in ("elementwise.c", "attention.c", "products.c")]
_PARTS = 16
"""Rows whose gradients of a weight are summed on their own: fixed, so that the result does not depend on the threads."""
_SUFFIXES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
"""Which functions of the library take tensors of a dtype."""
_LEAST_ROWS = 192
"""From so many rows on it pays to pack what they are multiplied with."""
_loading = threading.Lock()


def takes(*tensors: Tensor) -> bool:
    """Return whether the functions below take these tensors here: all in bf16 or all in fp32, whole, and on a CPU."""
    return tensors[0].dtype in _SUFFIXES and are_plain(*tensors) and kernels() is not None


def are_plain(*tensors: Tensor) -> bool:
    """Return whether these are tensors of one dtype on a CPU, and not of a class that only stands for some."""
    dtype = tensors[0].dtype
    return all(type(t) in (Tensor, nn.Parameter) and t.dtype == dtype and t.device.type == "cpu" for t in tensors)


def multiplies(a: Tensor, b: Tensor) -> bool:
    """Return whether `multiply` takes a [n, k] and b [k, m], or its transpose, and takes less time here than torch does."""
    fits = a.dtype == torch.float32 and a.ndim == 2 and len(a) >= _LEAST_ROWS
    return fits and torchs_product_is_slow() and takes(a, b)


@lru_cache(maxsize=1)
def torchs_product_is_slow() -> bool:
    """Return whether torch multiplies fp32 with a library that does not know this processor: MKL, off Intel's, with AVX-512.

    This is not measured but asked of the processor: a run that goes on must round as it did before.
    """
    described = processor()
    return torch.backends.mkl.is_available() and "avx512f" in described and "GenuineIntel" not in described


@lru_cache(maxsize=1)
def bf16_is_slow() -> bool:
    """Return whether this processor multiplies fp32 sooner. Not measured but asked, for the same reason."""
    return not cpu_multiplies_bf16()


def kernels() -> ctypes.CDLL | None:
    """Compile and load the kernels, the first time; None where there is no compiler that can."""
    return compilation().library


def compilation() -> Compiled:
    """Compile and load the kernels, the first time, and return what came of it."""
    with _loading:
        return _load()


def compile_ahead() -> None:
    """Begin to compile beside what else there is to do until the kernels are wanted. With a GPU they are not."""
    if torch.cuda.is_available():
        return
    threading.Thread(target=kernels, daemon=True).start()


@lru_cache(maxsize=1)
def _load() -> Compiled:
    try:
        # Only with the OpenMP library that torch has loaded: with a second one, two pools of threads would fight for the cores.
        ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD)
    except (OSError, AttributeError):
        return Compiled(None, "")
    return compile_or_load(_SOURCES, ("NO_PAIRS",) if bf16_is_slow() else ())


def attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
    """Return (softmax(q k^T / sqrt(d)) v [T, H, d], log of the sum of each row's exponentials, fp32 [H, T]).

    Contiguous `q` [T, H, d] and `k`, `v` [T, K, d], bf16 or fp32; int32 `offsets`, document i being the tokens from
    offsets[i] up to offsets[i + 1]. Causal; with a `window` a token sees only that many tokens, itself included.
    """
    out, log_sums = torch.empty_like(q), torch.empty(q.shape[1], q.shape[0])
    _call_attention("forward", q, k, v, out, log_sums, offsets=offsets, window=window)
    return out, log_sums


def attention_backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sums: Tensor, grad: Tensor, offsets: Tensor, window: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v, from what `attention` took and returned and the gradient of `out`."""
    grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    _call_attention("backward", q, k, v, out, log_sums, grad, *grads, offsets=offsets, window=window)
    return grads


def _call_attention(which: str, *tensors: Tensor, offsets: Tensor, window: int | None) -> None:
    q, k = tensors[:2]
    sizes = len(offsets) - 1, len(q), q.shape[1], k.shape[1], q.shape[2], window or 0
    if _call(f"attention_{which}", *tensors, offsets, *sizes):
        raise MemoryError("there is no memory for the tiles of attention")


def multiply(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Return a @ b for fp32 a [n, k] and b [k, m] of any strides, in `out` if that is given; no size is 0."""
    out = torch.empty(len(a), b.shape[1]) if out is None else out
    assert out.is_contiguous()
    with record_function("multiply"):  # the name of it in profiles
        if _call("multiply", a, b, out, *out.shape, len(b), *a.stride(), *b.stride()):
            raise MemoryError("there is no memory for the factor of a product")
    return out


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


def rotate(heads: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> Tensor:
    """Return `heads` [T, H, d] rotated by the angles of `cos` and `sin` [T, 1, d / 2], or by the opposite ones."""
    heads, cos, sin = heads.contiguous(), cos.contiguous(), sin.contiguous()
    out = torch.empty_like(heads)
    _call("rotate", heads, cos, sin, out, *heads.shape[:2], cos.shape[-1], ctypes.c_float(-1.0 if back else 1.0))
    return out


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


def _call(name: str, first: Tensor, *others: Tensor | int | ctypes.c_float) -> int:
    """Call the C function for the dtype of `first`; return what it does, which means something only where it is not void."""
    loaded = kernels()
    assert loaded is not None, "ask `takes` first"
    values = [
        ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else ctypes.c_int64(a) if isinstance(a, int) else a
        for a in (first, *others)
    ]
    return int(getattr(loaded, f"{name}_{_SUFFIXES[first.dtype]}")(*values))
