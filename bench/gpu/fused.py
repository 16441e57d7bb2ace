"""Each fast path of a step beside its formula in fp64 (`bench.fast_paths`), and the norm of the gradients of a whole table."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from bench import fast_paths
from bench.gpu.part import Findings, Setup
from medsft.core.devices import find_devices
from medsft.core.engine.kernels import cuda
from medsft.core.engine.parallel.master_weights import MasterWeights
from medsft.core.engine.train.optim import squared_norm

_TABLE = {False: (50_000, 512), True: (500, 64)}
"""By whether sizes are those of tests: added up in fp32, the squares of a table of tokens lose digits."""
_NORM_LIMIT = 1e-6


def measure(setup: Setup, found: Findings) -> None:
    """See the module."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    if device.type == "cuda":
        with found.attempt("kernels of installed libraries", right=True):
            problem, used = cuda.problem(device), cuda.identity(device)
            found.holds("the kernels of installed libraries work", not problem, problem or used)
    for dtype in (torch.bfloat16, torch.float32) if find_devices().bf16 or setup.tiny else (torch.float32,):
        for path in fast_paths.fast_paths():
            name = f"{path.name}, {str(dtype).removeprefix('torch.')}"
            with found.attempt(name, right=True):
                errors = fast_paths.errors(path, dtype, device)
                found.at_most(f"{name}, beside fp64", errors.fast, errors.allowed)
    with found.attempt("norm of gradients", right=True):
        found.at_most("norm of the gradients of a table", _norm_error(_TABLE[setup.tiny], device), _NORM_LIMIT)


def _norm_error(size: tuple[int, int], device: torch.device) -> float:
    """Return the relative error of the squared norm as a step computes it."""
    masters: dict[str, nn.Parameter] = {}
    exact = 0.0
    for name, shape in (("table", size), ("matrix", (64, 64)), ("norm", (64,))):
        gradient = torch.randn(shape)
        masters[name] = nn.Parameter(torch.empty(shape, device=device))
        masters[name].grad = gradient.to(device)
        exact += float(gradient.double().square().sum())
    mesh: Any = SimpleNamespace(device=device, dp_rank=0, tp_rank=0)
    return abs(float(squared_norm(MasterWeights(masters, {}), mesh, tied_copy=False)) / exact - 1)
