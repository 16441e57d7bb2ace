"""Frozen projections, and low-rank adapters (LoRA) beside them: x W^T + scaling * (x A^T) B^T.

W is frozen: there is no product for its gradient and no memory for one. Of a token autograd keeps x, which it would keep
without an adapter, too, and x A^T, which is as wide as the rank.

With tensor parallel each rank computes with its own part of W, A and B. Where W is divided by rows
(column-parallel), A is whole and B is divided by rows. Where W is divided by columns (row-parallel), A is divided by columns,
B is whole, and what a rank computes is its part of a sum. Either way the gradient of the whole factor is a sum of which a rank
has a part: it is marked as such, and `master_weights.allreduce_partial_gradients` adds it up.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from medsft.core.config.lora import B_SUFFIX, LoraSpec
from medsft.core.engine.kernels import dtype_of_products
from medsft.core.engine.kernels.scratch import Scratch
from medsft.core.engine.nn.dtensor import local_part, local_part_of_sum, local_range
from medsft.core.engine.nn.linear import Linear, add_product_, matmul
from medsft.core.engine.nn.quantized import QuantizedWeight, in_format


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """What a run trains beside a frozen base model, and how it holds the base."""

    lora: LoraSpec
    rows: tuple[int, ...] = ()
    """Ascending: the rows of the tables of tokens that are trained."""
    base_precision: str
    """Format of the frozen matrices of the layers: bf16, fp32 or nf4."""


class FrozenLinear(Linear):
    """x @ weight.T + bias for x [T, in], with a weight and a bias that are never trained.

    The weight may be kept in another format than `x`: in another dtype, or in nf4 (`quantize`). Each product converts it
    anew, into memory that stays (`quantized.in_format`).
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.quantized: QuantizedWeight | None = None

    def quantize(self) -> None:
        """Put memory for nf4 in the place of the weight, which may be divided over tensor-parallel ranks."""
        self.quantized = QuantizedWeight.like(self.weight)
        self.register_parameter("weight", None)

    def product(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Return x W^T, [T, out], for this rank's part of W, in `out` if that is given. Autograd does not see this product."""
        return matmul(x, self._weight_in(x.dtype).T, out)

    def product_of_gradient(self, grad: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the gradient of x [T, in] for a gradient [T, out] of x W^T, in `out` if that is given."""
        return matmul(grad, self._weight_in(grad.dtype), out)

    def add_product_of_gradient_(self, total: Tensor, grad: Tensor) -> None:
        """Add that gradient of x to `total` [T, in], in place."""
        add_product_(total, grad, self._weight_in(grad.dtype))

    def factors(self) -> tuple[Tensor, ...]:
        """Return this rank's parts of A and B; nothing without an adapter."""
        return ()

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of this rank's part of the weight."""
        rows, columns = local_range(self.weight)[1] if self.quantized is None else self.quantized.part.size
        return rows, columns

    def _weight_in(self, dtype: torch.dtype) -> Tensor:
        return in_format(self.weight if self.quantized is None else self.quantized, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return [T, out]; `out` is what this rank has of it, and where columns are divided the result is a part of a sum."""
        [out] = _together(x, [self])
        return out


class LoraLinear(FrozenLinear):
    """A frozen projection with an adapter, of which `lora_A` and `lora_B` are trained."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool, lora: LoraSpec) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.lora_A = Factor(lora.rank, in_features)
        self.lora_B = Factor(out_features, lora.rank)
        self.scaling = lora.scaling

    def factors(self) -> tuple[Tensor, ...]:
        """Return this rank's parts of A and B."""
        return local_part_of_sum(self.lora_A.weight), local_part_of_sum(self.lora_B.weight)


class Factor(nn.Module):
    """A matrix of an adapter. It has a module of its own for its name, which is that of other programs."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, columns))


def projection(
    name: str, in_features: int, out_features: int, *, bias: bool = False, adapter: Adapter | None = None
) -> nn.Linear:
    """Return the projection of a layer that is called `name`: with an adapter where `adapter` has it among its targets."""
    if adapter is None:
        return Linear(in_features, out_features, bias=bias)
    if name not in adapter.lora.targets:
        return FrozenLinear(in_features, out_features, bias=bias)
    return LoraLinear(in_features, out_features, bias=bias, lora=adapter.lora)


def project_together(x: Tensor, projections: Sequence[nn.Linear]) -> Sequence[Tensor]:
    """Return what some projections, all divided by rows of their weights, make of the same x; each rank has its features of it.

    Frozen ones share what there is to do about x (`_Products`).
    """
    frozen = [layer for layer in projections if isinstance(layer, FrozenLinear)]
    if len(frozen) < len(projections):
        return [layer(x) for layer in projections]
    return _together(x, frozen)


def _together(x: Tensor, layers: Sequence[FrozenLinear]) -> list[Tensor]:
    outs = _Products.apply(x, layers, *(factor for layer in layers for factor in layer.factors()))
    return [out if layer.bias is None else out + local_part(layer.bias) for layer, out in zip(layers, outs, strict=True)]


def initial_factor(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Return an A or B as training starts from it, fp32: B zeros, A uniform by (seed, name) as Kaiming He has it for sqrt(5).

    That is between -1 / sqrt(in) and 1 / sqrt(in), PEFT's choice. A model with it computes what its base computes.
    """
    if name.endswith(B_SUFFIX):
        return torch.zeros(shape)
    bound = 1 / math.sqrt(shape[1])
    generator = torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


_scratch = Scratch()


def _in_dtype(name: str, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `x` in the dtype of products; what is converted is valid until this thread asks for the name again."""
    return x if x.dtype == dtype else _scratch.take(name, x.shape, dtype, x.device).copy_(x)


def _room_for_product(x: Tensor, columns: int, dtype: torch.dtype) -> Tensor | None:
    """Return memory for a product that is then converted to the dtype of `x`; None where it is in it already."""
    return None if x.dtype == dtype else _scratch.take("product", (len(x), columns), dtype, x.device)


class _Products(torch.autograd.Function):
    """Products of the same x with some frozen projections, `bases`, and with the adapters of those that have one.

    The A of all of them are laid under one another: x and its gradient meet them in one product each, and so do the gradients
    of A. The gradients of x from the frozen weights are added up as they are computed.

    The weights of `bases` are not saved: FSDP gives their memory back between forward and backward, and gathers it again. Where
    products are computed in fp32 (`dtype_of_products`), x and each gradient are converted once for all products with them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, bases: Sequence[FrozenLinear], *factors: Tensor) -> tuple[Tensor, ...]:
        first, second = factors[::2], factors[1::2]
        dtype = dtype_of_products(x)
        wide = _in_dtype("x", x, dtype)
        low = matmul(wide, _stacked(first, dtype).T) if first else None
        pairs = zip(_parts(low, first), second, strict=True)
        outs = []
        for base in bases:
            out = base.product(wide, _room_for_product(x, base.size[0], dtype))
            if isinstance(base, LoraLinear):
                part, b = next(pairs)
                add_product_(out, part.mul_(base.scaling), b.to(dtype).T)
            outs.append(out.to(x.dtype))
        ctx.bases = bases
        ctx.save_for_backward(x if first else None, low, *factors)
        return tuple(outs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, low, *factors = ctx.saved_tensors
        first, second = factors[::2], factors[1::2]
        dtype = dtype_of_products(grads[0])
        grad_low = None if low is None else torch.empty_like(low)
        pairs = zip(_parts(low, first), _parts(grad_low, first), second, strict=True)
        grad_x: Tensor | None = None
        grad_second = []
        for base, grad in zip(ctx.bases, grads, strict=True):
            wide = _in_dtype("grad", grad, dtype)
            if isinstance(base, LoraLinear):
                part, grad_part, b = next(pairs)
                grad_part.copy_(matmul(wide, b.to(dtype))).mul_(base.scaling)
                grad_second.append(matmul(wide.T, part).to(b.dtype))
            if grad_x is not None:
                base.add_product_of_gradient_(grad_x, wide)
            elif ctx.needs_input_grad[0]:
                grad_x = base.product_of_gradient(wide, _room_for_product(grad, base.size[1], dtype))
        grad_factors: list[Tensor] = []
        if grad_low is not None:
            # The long factor first: products with few rows are slow.
            grad_first = matmul(_in_dtype("x", x, dtype).T, grad_low).T.split(len(first[0]))
            for grad_a, grad_b in zip(grad_first, grad_second, strict=True):
                grad_factors += grad_a.to(first[0].dtype), grad_b
            if grad_x is not None:
                add_product_(grad_x, grad_low, _stacked(first, dtype))
        return None if grad_x is None else grad_x.to(grads[0].dtype), None, *grad_factors


def _stacked(factors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return the A of some adapters under one another, in `dtype`."""
    return factors[0].to(dtype) if len(factors) == 1 else torch.cat([factor.to(dtype) for factor in factors])


def _parts(low: Tensor | None, factors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return of x times the stacked `factors` the part of each: views, all as wide as the rank."""
    return () if low is None else low.split(len(factors[0]), dim=1)
