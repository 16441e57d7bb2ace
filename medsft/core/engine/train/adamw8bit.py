"""AdamW with moments in 8 bits, over fp32 weights, or over bf16 weights that have no fp32 copy.

    weight, gradient, moments --some rows at a time, in fp32--> moments --quantize--> 8 bits
                                                            --> weight --round stochastically--> bf16

torchao's AdamW8bit has the same mathematics. It is not used because its blocks run on from row to row of what a rank holds, so
that a checkpoint fits few other layouts, and because it draws its random bits from each rank's own generator, so that copies of
a weight on several ranks (norms with tensor parallel, a tied table with a pipeline) would come apart.

Blocks lie in rows. A matrix of which a tensor-parallel rank has some columns has the blocks of each rank's columns, so ranks
quantize alone; `reblock` reads what another division of the columns has saved. Vectors and narrow matrices have fp32 moments.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Placement, Replicate

from medsft.core.engine.formats.dcp import MOMENTS, SCALE
from medsft.core.engine.kernels.adamw8 import Bits, Coefficients, Moment, Update, compiled, move_rows, update_rows
from medsft.core.engine.kernels.dynamic8 import block_length, blocks_of_row, quantize, table
from medsft.core.engine.kernels.stochastic import random_bits
from medsft.core.engine.nn.dtensor import local_part, local_range
from medsft.core.engine.parallel.mesh import Mesh

_NARROWEST = 32
"""Numbers in a row of a matrix below which its moments stay in fp32: the scales would weigh as much as is saved."""
_AT_A_TIME = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Numbers of a weight that are updated at a time: as many as a CPU's cache holds, and as many as keep a GPU busy."""


class AdamW8bit(torch.optim.Optimizer):
    """AdamW with decoupled decay (Loshchilov and Hutter 2019) over `named` weights."""

    def __init__(
        self,
        groups: Sequence[Mapping[str, Any]],
        named: Mapping[str, nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        seed: int,
    ) -> None:
        super().__init__([dict(group) for group in groups], {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self._names = {id(parameter): name for name, parameter in named.items()}
        self._seed = seed
        self.update_rows: Update = update_rows
        """What updates rows of a matrix. Ranks that have copies of a weight must take the same, or the copies come apart."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient."""
        for group in self.param_groups:
            known: dict[int, Coefficients] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter] = self.state[parameter] or new_state(parameter)
                state["step"] += 1
                done, device = int(state["step"]), local_part(parameter).device
                if done not in known:
                    known[done] = _coefficients(group, done, device)
                self._update(parameter, state, known[done], group["betas"], self._random_bits(parameter, done, device))

    def _random_bits(self, parameter: nn.Parameter, iteration: int, device: torch.device) -> Bits | None:
        """Return the random bits for rounding a weight; None of one in fp32, which is not rounded."""
        if parameter.dtype != torch.bfloat16:
            return None
        (first, *more), (count, *counts) = local_range(parameter)
        # A vector is a row.
        rows, columns = ((first, count), (more[0], counts[0])) if more else ((0, 1), (first, count))
        name = self._names[id(parameter)]
        return Bits(*random_bits(self._seed, iteration, name, rows=rows, columns=columns, device=device))

    def _update(
        self,
        parameter: nn.Parameter,
        state: Mapping[str, Tensor],
        coefficients: Coefficients,
        betas: tuple[float, float],
        bits: Bits | None,
    ) -> None:
        assert parameter.grad is not None
        weight, gradient = _rows(local_part(parameter.detach())), _rows(local_part(parameter.grad))
        if not is_quantized(parameter.shape):
            mean, square = (_rows(local_part(state[moment])) for moment in MOMENTS)
            slope = gradient.float()
            mean.lerp_(slope, 1 - betas[0])
            square.mul_(betas[1]).addcmul_(slope, slope, value=1 - betas[1])
            move_rows(weight, mean, square, coefficients, bits)
            return
        first, second = (_quantized(state, moment) for moment in MOMENTS)
        for rows in _chunks(weight):
            one, two = (Moment(codes[rows], scales[rows], kind) for codes, scales, kind in (first, second))
            of_rows = bits and Bits(bits.rows[rows], bits.columns)
            self.update_rows(weight[rows], gradient[rows], one, two, coefficients, betas, of_rows)


def compile_update(optimizer: AdamW8bit, masters: Sequence[nn.Parameter], mesh: Mesh) -> str:
    """Let a GPU update by few kernels; return why it cannot, or nothing. Every rank must call it: all do it, or none does."""
    dtype = masters[0].dtype if masters else torch.float32
    found, problem = compiled(mesh.device, dtype)
    problems = [str(told) for told in mesh.gather(problem) if told]
    if problems:
        return problems[0]
    optimizer.update_rows = found
    return ""


def is_quantized(shape: Sequence[int]) -> bool:
    """Tell whether the moments of a weight of this (whole) shape have 8 bits."""
    return len(shape) == 2 and shape[1] >= _NARROWEST


def new_state(parameter: Tensor) -> dict[str, Tensor]:
    """Return the state of a weight before its first update: its number of updates, and moments that are 0.

    A moment in 8 bits is codes (of the weight's shape) and scales [rows, parts of the columns, blocks of a part], divided over
    the ranks as the weight is: a rank that has some of the columns has the scales of one part.
    """
    state: dict[str, Tensor] = {"step": torch.zeros(())}
    for moment in MOMENTS:
        if is_quantized(parameter.shape):
            state[moment] = torch.zeros_like(parameter.detach(), dtype=torch.uint8)
            parts = _column_parts(parameter)
            blocks = blocks_of_row(parameter.shape[1] // parts)
            state[moment + SCALE] = _scales(parameter, parts, blocks, placed=_placements(parameter))
        else:
            state[moment] = torch.zeros_like(parameter.detach(), dtype=torch.float32)
    return state


def _placements(parameter: Tensor) -> tuple[Placement, ...]:
    return tuple(parameter.placements) if isinstance(parameter, DTensor) else ()


def _column_parts(parameter: Tensor) -> int:
    """Return in how many parts ranks hold the columns of a matrix."""
    if not isinstance(parameter, DTensor):
        return 1
    sizes = parameter.device_mesh.shape
    return math.prod(size for size, placement in zip(sizes, parameter.placements, strict=True) if placement.is_shard(1))


def _scales(parameter: Tensor, parts: int, blocks: int, *, placed: Sequence[Placement]) -> Tensor:
    """Return scales of 0 for the rows of `parameter` that this rank has; all parts of the columns, or its own as `placed`."""
    whole = torch.Size((parameter.shape[0], parts, blocks))
    local = local_part(parameter)
    divided = any(placement.is_shard(1) for placement in placed)
    found = torch.zeros(local.shape[0], 1 if divided else parts, blocks, device=local.device)
    if not isinstance(parameter, DTensor):
        return found
    return DTensor.from_local(
        found, parameter.device_mesh, placed, run_check=False, shape=whole, stride=(parts * blocks, blocks, 1)
    )


def _coefficients(group: Mapping[str, Any], done: int, device: torch.device) -> Coefficients:
    """Return the coefficients of a weight's update number `done`."""
    (beta1, beta2), lr = group["betas"], group["lr"]
    root = math.sqrt(1 - beta2**done)
    numbers = (lr * group["weight_decay"], lr / (1 - beta1**done) * root, group["eps"] * root)
    return Coefficients(*torch.tensor(numbers, dtype=torch.float32, device=device))


def _quantized(state: Mapping[str, Tensor], moment: str) -> Moment:
    """Return this rank's part of a moment in 8 bits."""
    codes, scales = local_part(state[moment]), local_part(state[moment + SCALE])
    return Moment(codes, scales.squeeze(1), table(MOMENTS[moment], codes.device))


def _rows(tensor: Tensor) -> Tensor:
    """Return a matrix as it is, a vector as one row."""
    return tensor if tensor.ndim == 2 else tensor.unsqueeze(0)


def _chunks(weight: Tensor) -> Iterator[slice]:
    """Yield the rows of a weight, some at a time."""
    if weight.numel():
        step = max(1, _AT_A_TIME[weight.device.type] // weight.shape[1])
        for start in range(0, len(weight), step):
            yield slice(start, start + step)


def saved_scales(parameter: Tensor, shape: Sequence[int]) -> Tensor:
    """Return scales of a saved shape, to be read: for this rank's rows of a matrix, of whole rows."""
    _, parts, blocks = shape
    placed = tuple(Replicate() if placement.is_shard(1) else placement for placement in _placements(parameter))
    return _scales(parameter, parts, blocks, placed=placed)


def reblock(parameter: Tensor, state: Mapping[str, Tensor], moment: str, saved: Tensor) -> None:
    """Quantize a moment anew whose codes were read from a checkpoint that divides the columns otherwise.

    `saved` are the scales that `saved_scales` has made room for.
    """
    own, scales = _quantized(state, moment), local_part(saved)
    (_, first), (_, count) = local_range(parameter)
    parts, blocks = scales.shape[1:]
    width = parameter.shape[1] // parts
    places = torch.arange(first, first + count, device=scales.device)
    block = places // width * blocks + places % width // block_length(width, blocks)
    for rows in _chunks(own.codes):
        units = own.table.constants.index_select(0, own.codes[rows].flatten().int()).view(-1, count)
        quantize(units * scales[rows].flatten(1)[:, block], own.codes[rows], own.scales[rows], own.table)
