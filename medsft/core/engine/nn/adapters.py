"""Frozen projections, and low-rank adapters (LoRA) beside them: x W^T + scaling * (x A^T) B^T.

W is frozen: there is no product for its gradient and no memory for one. Of a token autograd keeps x, which it would keep
without an adapter, too, and x A^T, which is as wide as the rank.

With tensor parallel, x is a DTensor and each rank computes with its own part of W, A and B. Where W is divided by rows
(column-parallel), A is whole and B is divided by rows. Where W is divided by columns (row-parallel), A is divided by columns,
B is whole, and what a rank computes is its part of a sum. Either way the gradient of the whole factor is a sum of which a rank
has a part: it is marked as such, and `master_weights.allreduce_partial_gradients` adds it up.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor, Partial, Placement, Shard

from medsft.core.config.lora import B_SUFFIX, LoraSpec
from medsft.core.engine.kernels import dtype_of_products
from medsft.core.engine.kernels.scratch import Scratch
from medsft.core.engine.nn.dtensor import arrived, local_part, local_part_of_sum, local_range
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

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of this rank's part of the weight."""
        rows, columns = local_range(self.weight)[1] if self.quantized is None else self.quantized.part.size
        return rows, columns

    def _weight_in(self, dtype: torch.dtype) -> Tensor:
        return in_format(self.weight if self.quantized is None else self.quantized, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return [T, out]. A DTensor that is whole on each rank meets rows of W, one that is divided by features columns."""
        if not isinstance(x, DTensor):
            return self._on_this_rank(x)
        whole = x.placements[0].is_replicate()
        # Of a whole x each rank computes the part of the gradient that comes from its rows of W.
        local = x.to_local(grad_placements=(Partial(),)) if whole else x.to_local()
        made: Placement = Shard(-1) if whole else Partial()
        return DTensor.from_local(self._on_this_rank(local), x.device_mesh, (made,), run_check=False)

    def _on_this_rank(self, x: Tensor) -> Tensor:
        out = self._product(x)
        return out if self.bias is None else out + local_part(self.bias)

    def _product(self, x: Tensor) -> Tensor:
        return _FrozenProduct.apply(x, self)


class LoraLinear(FrozenLinear):
    """A frozen projection with an adapter, of which `lora_A` and `lora_B` are trained."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool, lora: LoraSpec) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.lora_A = Factor(lora.rank, in_features)
        self.lora_B = Factor(out_features, lora.rank)
        self.scaling = lora.scaling

    def _product(self, x: Tensor) -> Tensor:
        a, b = local_part_of_sum(self.lora_A.weight), local_part_of_sum(self.lora_B.weight)
        return _LoraProduct.apply(x, a, b, self.scaling, self)


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


class _FrozenProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, base: FrozenLinear) -> Tensor:
        ctx.base = base
        x = arrived(x)
        dtype = dtype_of_products(x)
        return base.product(_in_dtype("x", x, dtype), _room_for_product(x, base.size[0], dtype)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.needs_input_grad[0]:
            return None, None
        grad = arrived(grad)
        dtype = dtype_of_products(grad)
        wide, room = _in_dtype("grad", grad, dtype), _room_for_product(grad, ctx.base.size[1], dtype)
        return ctx.base.product_of_gradient(wide, room).to(grad.dtype), None


class _LoraProduct(torch.autograd.Function):
    """The weight of `base` is not saved: FSDP gives its memory back between forward and backward, and gathers it again.

    Where products are computed in fp32 (`dtype_of_products`), x and the gradient are converted once for all products with them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, scaling: float, base: FrozenLinear) -> Tensor:
        x = arrived(x)
        dtype = dtype_of_products(x)
        wide = _in_dtype("x", x, dtype)
        low = matmul(wide, a.to(dtype).T).mul_(scaling)
        ctx.base, ctx.scaling = base, scaling
        ctx.save_for_backward(x, low, a, b)
        return add_product_(base.product(wide, _room_for_product(x, len(b), dtype)), low, b.to(dtype).T).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, low, a, b = ctx.saved_tensors
        grad, dtype = arrived(grad), low.dtype
        wide = _in_dtype("grad", grad, dtype)
        grad_low = matmul(wide, b.to(dtype)).mul_(ctx.scaling)
        # The long factor first: products with few rows are slow.
        grad_a, grad_b = matmul(_in_dtype("x", x, dtype).T, grad_low).T, matmul(wide.T, low)
        grad_x = None
        if ctx.needs_input_grad[0]:
            room = _room_for_product(grad, a.shape[1], dtype)
            grad_x = add_product_(ctx.base.product_of_gradient(wide, room), grad_low, a.to(dtype)).to(grad.dtype)
        return grad_x, grad_a.to(a.dtype), grad_b.to(b.dtype), None, None
