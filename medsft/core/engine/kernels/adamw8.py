"""An update of rows of a matrix by AdamW with moments in 8 bits: a function of tensors alone, so that torch can compile it.

torch's operations one by one read and write the rows some forty times. On a GPU `compiled` makes a few kernels of them (not run
on one yet).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from medsft.core.engine.kernels.dynamic8 import Table, blocks_of_row, dequantize, quantize, table
from medsft.core.engine.kernels.stochastic import round_to_bf16


class Moment(NamedTuple):
    """Rows of a moment in 8 bits."""

    codes: Tensor
    """uint8 [rows, columns]"""
    scales: Tensor
    """fp32 [rows, blocks]"""
    table: Table


class Bits(NamedTuple):
    """Random bits for rounding the rows of a weight."""

    rows: Tensor
    """int32 [rows]"""
    columns: Tensor
    """int32 [columns]"""


class Coefficients(NamedTuple):
    """The numbers of an iteration's update, fp32 without a dimension on the device of the weights.

    Both moments begin at 0 and are corrected for that; the root of the second one's correction is a factor of rate and eps.
    """

    decay: Tensor
    """The part of a weight that decay takes."""
    rate: Tensor
    eps: Tensor


Arguments = tuple[Tensor, Tensor, Moment, Moment, Coefficients, tuple[float, float], Bits | None]
Update = Callable[[Tensor, Tensor, Moment, Moment, Coefficients, tuple[float, float], Bits | None], None]


def update_rows(
    weight: Tensor,
    gradient: Tensor,
    first: Moment,
    second: Moment,
    coefficients: Coefficients,
    betas: tuple[float, float],
    bits: Bits | None,
) -> None:
    """Update rows of a weight, fp32 or (with `bits`) bf16, and of both moments in place. All is computed in fp32."""
    slope = gradient.float()
    mean = dequantize(*first).lerp_(slope, 1 - betas[0])
    square = dequantize(*second).mul_(betas[1]).addcmul_(slope, slope, value=1 - betas[1])
    quantize(mean, *first)
    quantize(square, *second)
    move_rows(weight, mean, square, coefficients, bits)


def move_rows(weight: Tensor, mean: Tensor, square: Tensor, coefficients: Coefficients, bits: Bits | None) -> None:
    """Update rows of a weight in place by both moments, which stay as they are."""
    numbers = weight.float()  # of an fp32 weight itself
    numbers.addcmul_(numbers, coefficients.decay, value=-1)
    numbers.addcmul_(mean / square.sqrt().add_(coefficients.eps), coefficients.rate, value=-1)
    if bits is not None:
        weight.copy_(round_to_bf16(numbers, *bits))


def compiled(device: torch.device, dtype: torch.dtype) -> tuple[Update, str]:
    """Return `update_rows` compiled for weights of this type on a GPU, or as it is and why it could not be compiled.

    On a CPU, where rows stay in its cache from one operation to the next, it is not compiled.
    """
    if device.type != "cuda":
        return update_rows, ""
    try:
        found: Update = torch.compile(update_rows, dynamic=True, fullgraph=True)
        found(*example(4, 512, device, dtype))
        torch.cuda.synchronize(device)
    except Exception as error:  # of torch, of Triton, of the C compiler that Triton needs
        lines = str(error).splitlines()
        return update_rows, f"{type(error).__name__}: {lines[0] if lines else ''}"
    return found, ""


def example(rows: int, columns: int, device: torch.device, dtype: torch.dtype) -> Arguments:
    """Return arguments for `update_rows`: a weight of zeros with a gradient of zeros."""
    first, second = (
        Moment(
            torch.zeros(rows, columns, dtype=torch.uint8, device=device),
            torch.zeros(rows, blocks_of_row(columns), device=device),
            table(signed, device),
        )
        for signed in (True, False)
    )
    bits = Bits(*(torch.zeros(size, dtype=torch.int32, device=device) for size in (rows, columns)))
    weight = torch.zeros(rows, columns, dtype=dtype, device=device)
    coefficients = Coefficients(*torch.tensor([1e-6, 1e-5, 1e-8], device=device))
    in_bf16 = dtype == torch.bfloat16
    return (
        weight,
        torch.zeros(rows, columns, device=device),
        first,
        second,
        coefficients,
        (0.9, 0.95),
        bits if in_bf16 else None,
    )
