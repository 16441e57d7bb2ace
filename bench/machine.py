"""What the machine could do at best: the rate of its matrix products, which everything else is held against."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import torch

from medsft.core.engine.commands.doctor import matmul_rate

_SQUARE = 2048
"""Of the matrices on a processor. `matmul_rate` takes larger ones on a GPU, which a product of this size does not fill."""
_ENOUGH_SECONDS = 20
"""A processor without instructions for bf16 takes a minute for one such product."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Rates of a large square product on all cores (or the GPU), in FLOP/s."""

    fp32: float
    bf16: float
    threads: int
    load: float
    """Processes that wanted to run in the minute before: above the threads of this measurement, others disturb it."""

    def rate(self, precision: str) -> float:
        """Return the rate in the number type that a training in `precision` multiplies in."""
        return self.bf16 if precision == "bf16" else self.fp32


def measure(repeats: int = 5) -> Machine:
    """Multiply square matrices; the best of `repeats`, because this is to be a limit. Slow processors do fewer."""
    load = os.getloadavg()[0]
    return Machine(_rate(torch.float32, repeats), _rate(torch.bfloat16, repeats), torch.get_num_threads(), load)


def _rate(dtype: torch.dtype, repeats: int) -> float:
    if torch.cuda.is_available():
        return max(matmul_rate(dtype, torch.device("cuda")) for _ in range(repeats))
    a, b = (torch.randn(_SQUARE, _SQUARE).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    seconds: list[float] = []
    while len(seconds) < repeats and sum(seconds) < _ENOUGH_SECONDS:
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        seconds.append(time.perf_counter() - start)
    return 2 * _SQUARE**3 / min(seconds)
