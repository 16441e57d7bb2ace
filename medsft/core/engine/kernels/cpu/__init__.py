"""The CPU's kernels: attention in tiles, layer steps that pass over memory once, and matrix products.

The C sources are compiled on first use, for the processor that runs them; that takes two seconds, and the library is kept for
the next process (`compiled`). `supports` returns False without a C compiler, and for everything but plain tensors on a CPU.
`Kernels` in the package above says what the functions return.
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
from medsft.core.engine.kernels.cpu.fp32_matmul import matmul_in_fp32 as matmul_in_fp32
from medsft.core.engine.kernels.reference import reference_only
from medsft.core.models.nf4 import ZERO, blocks_of_row

_SOURCES = [Path(__file__).with_name(name) for name in ("elementwise.c", "attention.c", "products.c", "nf4.c")]
_PARTS = 16
"""Into so many groups of rows the gradient of a norm's weight is split before it is summed: a fixed number, so that the result
does not depend on the number of threads."""
_SUFFIXES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
"""Which functions of the library take tensors of a dtype."""
_LEAST_ROWS = 192
"""Below this many rows, packing the other operand costs more than the product saves."""
_LEAST_ROWS_IN_FP32 = 64
"""Below this many rows, converting the other operand to fp32 costs more than the product saves."""
_loading = threading.Lock()


def supports(*tensors: Tensor) -> bool:
    """Return whether the kernels could be compiled and take these tensors: plain ones on a CPU, all bf16 or all fp32."""
    return tensors[0].dtype in _SUFFIXES and _are_plain(*tensors) and library() is not None


def _are_plain(*tensors: Tensor) -> bool:
    """Return whether these are tensors of one dtype on a CPU, and none of a subclass such as DTensor."""
    dtype = tensors[0].dtype
    return all(type(t) in (Tensor, nn.Parameter) and t.dtype == dtype and t.device.type == "cpu" for t in tensors)


def prefers_own_matmul(a: Tensor, b: Tensor) -> bool:
    """Return whether `matmul` is faster than torch for a [n, k] and b [k, m], or its transpose."""
    fits = a.dtype == torch.float32 and a.ndim == 2 and len(a) >= _LEAST_ROWS
    return fits and torch_fp32_matmul_is_slow() and supports(a, b)


def prefers_fp32_matmul(a: Tensor, b: Tensor) -> bool:
    """Return whether `matmul_in_fp32` is faster than torch for bf16 a [n, k] and b [k, m], or its transpose."""
    fits = a.dtype == torch.bfloat16 and a.ndim == 2 and len(a) >= _LEAST_ROWS_IN_FP32
    return fits and bf16_is_slow() and _are_plain(a, b)


@lru_cache(maxsize=1)
def torch_fp32_matmul_is_slow() -> bool:
    """Return whether torch multiplies fp32 with a library that was not made for this processor: MKL on one with AVX-512 that is
    not Intel's.

    The processor's description decides, not a measurement: a resumed run must round as it did before.
    """
    described = processor()
    return torch.backends.mkl.is_available() and "avx512f" in described and "GenuineIntel" not in described


@lru_cache(maxsize=1)
def bf16_is_slow() -> bool:
    """Return whether this processor multiplies fp32 faster than bf16, by its description, for the same reason."""
    return not cpu_multiplies_bf16()


def library() -> ctypes.CDLL | None:
    """Return the library of the kernels, compiled and loaded on the first call; None where it could not be compiled."""
    return compilation().library


def compilation() -> Compiled:
    """Return the library with its identity, or why there is none; compiled and loaded on the first call."""
    with _loading:
        return _load()


def compile_ahead() -> None:
    """Compile the kernels in a thread, while the process imports and reads; with a GPU they are not used."""
    if torch.cuda.is_available():
        return
    threading.Thread(target=library, daemon=True).start()


@lru_cache(maxsize=1)
def _load() -> Compiled:
    if reference_only():
        return Compiled(None, "")
    try:
        # Only with the OpenMP library that torch has loaded: with a second one, two pools of threads would fight for the cores.
        ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD)
    except (OSError, AttributeError):
        return Compiled(None, "")
    return compile_or_load(_SOURCES, ("NO_PAIRS",) if bf16_is_slow() else ())


def attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
    """See `Kernels.attention`."""
    out, log_sums = torch.empty_like(q), torch.empty(q.shape[1], q.shape[0])
    _call_attention("forward", q, k, v, out, log_sums, cu_seqlens=cu_seqlens, window=window)
    return out, log_sums


def attention_backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sums: Tensor, grad: Tensor, cu_seqlens: Tensor, window: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """See `Kernels.attention_backward`."""
    grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    _call_attention("backward", q, k, v, out, log_sums, grad, *grads, cu_seqlens=cu_seqlens, window=window)
    return grads


def _call_attention(which: str, *tensors: Tensor, cu_seqlens: Tensor, window: int | None) -> None:
    q, k = tensors[:2]
    sizes = len(cu_seqlens) - 1, len(q), q.shape[1], k.shape[1], q.shape[2], window or 0
    if _call(f"attention_{which}", *tensors, cu_seqlens, *sizes):
        raise MemoryError("out of memory while packing the tiles of attention")


def attention_ranges(
    q: Tensor, k: Tensor, v: Tensor, queries: Tensor, pieces: Tensor, ranges: Tensor, window: int | None
) -> Tensor:
    """See `Kernels.attention_ranges`."""
    out = torch.empty_like(q)
    sizes = len(queries) - 1, q.shape[1], k.shape[1], q.shape[2], window or 0
    if _call("attention_ranges", q, k, v, out, queries, pieces, ranges, *sizes):
        raise MemoryError("out of memory while packing the tiles of attention")
    return out


def matmul(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Return a @ b for fp32 a [n, k] and b [k, m] of any strides, in the contiguous `out` if that is given. No size is 0."""
    out = torch.empty(len(a), b.shape[1]) if out is None else out
    assert out.is_contiguous()
    with record_function("multiply"):  # its name in profiles
        if _call("multiply", a, b, out, *out.shape, len(b), *a.stride(), *b.stride()):
            raise MemoryError("out of memory while packing a matrix operand")
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `Kernels.rms_norm`."""
    x, weight = x.contiguous(), weight.contiguous()
    rows, size = x.numel() // len(weight), len(weight)
    out, inverse = torch.empty_like(x), torch.empty(rows)
    _call("rms_norm_forward", x, weight, out, inverse, rows, size, ctypes.c_float(eps))
    return out, inverse


def rms_norm_backward(x: Tensor, weight: Tensor, inverse: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """See `Kernels.rms_norm_backward`."""
    x, weight, grad = x.contiguous(), weight.contiguous(), grad.contiguous()
    grad_x, grad_weight = torch.empty_like(x), torch.empty(_PARTS, len(weight))
    _call("rms_norm_backward", x, weight, inverse, grad, grad_x, grad_weight, len(inverse), len(weight), _PARTS)
    return grad_x, grad_weight.sum(0).to(weight.dtype)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """See `Kernels.swiglu`."""
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    _call("swiglu_forward", gate, up, out, gate.numel())
    return out


def swiglu_backward(gate: Tensor, up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """See `Kernels.swiglu_backward`."""
    gate, up, grad = gate.contiguous(), up.contiguous(), grad.contiguous()
    grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(up)
    _call("swiglu_backward", gate, up, grad, grad_gate, grad_up, gate.numel())
    return grad_gate, grad_up


def rotate(heads: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> Tensor:
    """See `Kernels.rotate`."""
    heads, cos, sin = heads.contiguous(), cos.contiguous(), sin.contiguous()
    out = torch.empty_like(heads)
    _call("rotate", heads, cos, sin, out, *heads.shape[:2], cos.shape[-1], ctypes.c_float(-1.0 if back else 1.0))
    return out


def cross_entropy_(logits: Tensor, labels: Tensor) -> Tensor:
    """See `Kernels.cross_entropy_`."""
    rows, columns = logits.shape
    if rows and not 0 <= int(labels.min()) <= int(labels.max()) < columns:
        raise IndexError(f"a label is not below {columns}")
    nll = torch.empty(rows)
    _call("cross_entropy", logits, labels.contiguous(), nll, rows, columns)
    return nll


def nf4_largest(matrix: Tensor) -> Tensor:
    """See `Kernels.nf4_largest`."""
    rows, columns = matrix.shape
    largest = torch.empty(rows, blocks_of_row(columns))
    _call("nf4_largest", matrix, largest, rows, columns)
    return largest


def nf4_codes(matrix: Tensor, largest: Tensor, middles: Tensor, columns: range) -> Tensor:
    """See `Kernels.nf4_codes`."""
    codes = torch.empty(len(matrix), -(-len(columns) // 2), dtype=torch.uint8)
    _call("nf4_codes", matrix, largest, middles, codes, *matrix.shape, columns.start, len(columns), ZERO)
    return codes


def nf4_numbers_(
    out: Tensor,
    codes: Tensor,
    scales: Tensor,
    groups: Tensor,
    constants: Tensor,
    *,
    begins: int,
    first_block: int,
    row_blocks: int,
) -> None:
    """See `Kernels.nf4_numbers_`."""
    _call("nf4_numbers", out, codes, scales, groups, constants, *out.shape, scales.shape[1], begins, first_block, row_blocks)


def _call(name: str, first: Tensor, *others: Tensor | int | ctypes.c_float) -> int:
    """Call the C function for the dtype of `first` and return its result, which means nothing where the function is void."""
    loaded = library()
    assert loaded is not None, "ask `supports` first"
    values = [
        ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else ctypes.c_int64(a) if isinstance(a, int) else a
        for a in (first, *others)
    ]
    return int(getattr(loaded, f"{name}_{_SUFFIXES[first.dtype]}")(*values))
