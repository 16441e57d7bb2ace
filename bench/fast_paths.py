"""Each fast path of a training step beside the formula that it computes, for comparisons on whatever device is at hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from medsft.core.engine.kernels.nf4 import Part, pack, unpack
from medsft.core.engine.nn.fused import rms_norm, rotate_queries_and_keys, swiglu
from medsft.core.engine.nn.linear import add_product_in_fp32_
from medsft.core.engine.nn.loss import weighted_nll
from medsft.core.engine.train.optim import sum_of_squares_at_once

Function = Callable[..., tuple[Tensor, ...]]

_FLOOR = {torch.bfloat16: 4e-3, torch.float32: 3e-6}
"""Relative errors that rounding to a format explains."""
_EPS = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class FastPath:
    """A function of training, and its formula by torch's operations, both of tensors of some `shapes`."""

    name: str
    fast: Function
    formula: Function
    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Errors:
    """Relative errors of values and gradients, the largest of them, against the formula in fp64."""

    fast: float
    formula: float
    """Of the formula in the format of the fast path."""
    allowed: float

    @property
    def small(self) -> bool:
        """Whether the fast path is about as exact as the formula."""
        return self.fast <= self.allowed


def fast_paths() -> tuple[FastPath, ...]:
    """Return all of them; sizes are those of a small model's layer."""
    return (
        FastPath(name="norm", fast=_norm, formula=_plain_norm, shapes=((300, 576), (576,))),
        FastPath(name="norm of heads", fast=_norm, formula=_plain_norm, shapes=((300, 9, 64), (64,))),
        FastPath(
            name="SwiGLU",
            fast=lambda gate, up: (swiglu(gate, up),),
            formula=lambda gate, up: (F.silu(gate) * up,),
            shapes=((300, 1536), (300, 1536)),
        ),
        FastPath(name="rotation", fast=_rotation, formula=_plain_rotation, shapes=((300, 9, 64), (300, 3, 64))),
        FastPath(name="loss in one chunk", fast=_loss(chunk=300), formula=_plain_loss, shapes=((300, 64), (1000, 64))),
        FastPath(name="loss in chunks", fast=_loss(chunk=70), formula=_plain_loss, shapes=((300, 64), (1000, 64))),
        FastPath(
            name="product added in fp32",
            fast=lambda a, b: (add_product_in_fp32_(torch.ones(200, 100, device=a.device), a.detach(), b.detach()),),
            formula=lambda a, b: (1 + (a @ b).detach(),),
            shapes=((200, 300), (300, 100)),
        ),
        FastPath(
            name="norm of gradients",
            fast=lambda *tensors: (sum_of_squares_at_once([x.detach().float() for x in tensors]),),
            formula=lambda *tensors: (torch.stack([x.detach().square().sum() for x in tensors]).sum().view(1),),
            shapes=((1000, 64), (64,), (3, 5)),
        ),
        FastPath(name="nf4", fast=_nf4, formula=_nf4_on_cpu, shapes=((96, 640),)),
        FastPath(name="nf4 in parts of blocks", fast=_nf4, formula=_nf4_on_cpu, shapes=((7, 130),)),
    )


def errors(path: FastPath, dtype: torch.dtype, device: torch.device) -> Errors:
    """Return how exact `path` is on a device, in `dtype` (bf16 or fp32)."""
    exact = _run(path.formula, path.shapes, dtype, torch.float64, device)
    fast = _largest_error(_run(path.fast, path.shapes, dtype, dtype, device), exact)
    formula = _largest_error(_run(path.formula, path.shapes, dtype, dtype, device), exact)
    return Errors(fast, formula, max(1.5 * formula, _FLOOR[dtype]))


def _run(
    function: Function, shapes: tuple[tuple[int, ...], ...], rounded: torch.dtype, dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """Return values and gradients of `function` for numbers of the format `rounded`, computed in `dtype`."""
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(shape, generator=generator).to(rounded).to(device, dtype).requires_grad_() for shape in shapes]
    out = function(*(leaf.clone() for leaf in leaves))  # copies, whose memory a fast path may take
    weighted = [
        (values * torch.randn(values.shape, generator=generator).to(rounded).to(values)).sum()
        for values in out
        if values.requires_grad
    ]
    gradients = torch.autograd.grad(torch.stack(weighted).sum(), leaves) if weighted else ()
    return [values.detach() for values in (*out, *gradients)]


def _largest_error(found: list[Tensor], exact: list[Tensor]) -> float:
    return max(float((a.double() - b.double()).norm() / b.double().norm()) for a, b in zip(found, exact, strict=True))


def _norm(x: Tensor, weight: Tensor) -> tuple[Tensor]:
    return (rms_norm(x, weight, _EPS),)


def _plain_norm(x: Tensor, weight: Tensor) -> tuple[Tensor]:
    wide = x if x.dtype == torch.float64 else x.float()
    return (weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + _EPS)).to(x.dtype),)


def _rotation(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    return rotate_queries_and_keys(q, k, *_tables(q))


def _plain_rotation(q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
    cos, sin = _tables(q)
    halves = [heads.chunk(2, dim=-1) for heads in (q, k)]
    return tuple(torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1) for first, second in halves)


def _tables(heads: Tensor) -> tuple[Tensor, Tensor]:
    steps = torch.linspace(1.0, 0.01, heads.shape[-1] // 2, device=heads.device)
    angles = torch.arange(len(heads), device=heads.device)[:, None, None] * steps
    return angles.cos().to(heads.dtype), angles.sin().to(heads.dtype)


def _loss(chunk: int) -> Function:
    def loss(hidden: Tensor, head: Tensor) -> tuple[Tensor]:
        labels, weights = _labels(hidden, head)
        return (weighted_nll(hidden, head, labels, weights, vocab_size=len(head), chunk_rows=chunk).loss,)

    return loss


def _plain_loss(hidden: Tensor, head: Tensor) -> tuple[Tensor]:
    labels, weights = _labels(hidden, head)
    logits = hidden @ head.T
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return ((F.cross_entropy(wide, labels, reduction="none") * weights).sum(),)


def _labels(hidden: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
    numbers = torch.arange(len(hidden), device=hidden.device)
    return numbers * 7 % len(head), (numbers % 4 > 0) * 0.5


def _nf4(matrix: Tensor) -> tuple[Tensor]:
    held, part = matrix.detach().cpu(), Part.whole(*matrix.shape)
    packed = pack(part, lambda rows: held[rows])
    dtype = torch.float32 if matrix.dtype == torch.float64 else matrix.dtype
    packed = type(packed)(*(tensor.to(matrix.device) for tensor in (packed.codes, packed.scales, packed.groups)))
    return (unpack(packed, part, torch.empty(part.size, dtype=dtype, device=matrix.device)),)


def _nf4_on_cpu(matrix: Tensor) -> tuple[Tensor]:
    return (_nf4(matrix.cpu())[0].to(matrix.device),)
