"""The optimizer over the master weights, and the norm of the gradient over the whole mesh."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from medsft.core.config.lora import TRAINED_ROWS
from medsft.core.config.run_config import RunConfig
from medsft.core.engine.parallel.master_weights import MasterWeights, local_gradient
from medsft.core.engine.parallel.mesh import Mesh
from medsft.core.engine.train.adamw8bit import AdamW8bit
from medsft.core.planning.optimizer import ADAMW8BIT

TIED_TABLE = "model.embed_tokens.weight"
TIED = (TIED_TABLE, TRAINED_ROWS[TIED_TABLE])
"""What is trained of a tied embedding: the table, or beside an adapter some of its rows."""


def make_optimizer(masters: MasterWeights, config: RunConfig) -> torch.optim.Optimizer:
    """Return AdamW with decoupled decay on matrices (embedding and output projection included), none on norms and biases."""
    matrices = [p for p in masters.by_name.values() if p.ndim >= 2]
    vectors = [p for p in masters.by_name.values() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]] or groups  # a pipeline stage may have nothing to train
    betas = config.adam_beta1, config.adam_beta2
    if config.optimizer == ADAMW8BIT:
        return AdamW8bit(groups, masters.by_name, lr=config.lr, betas=betas, eps=config.adam_eps, seed=config.seed)
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.adam_eps, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use `lr` for the next update of every parameter."""
    for group in optimizer.param_groups:
        group["lr"] = lr


@torch.no_grad()
def squared_norm(masters: MasterWeights, mesh: Mesh, *, tied_copy: bool) -> Tensor:
    """Return this rank's share of the squared gradient norm, fp64 [1]: summed over all ranks it counts each value once.

    A tensor of which every tensor-parallel or data-parallel rank has a copy counts on the first of them. `tied_copy` says that
    this stage's embedding is a copy of the first stage's; it counts there.
    """
    counted = [
        local_gradient(master)
        for name, master in masters.by_name.items()
        if master.grad is not None
        and not (masters.copied_over_dp and mesh.dp_rank > 0)
        and not (tied_copy and name in TIED)
        and not (mesh.tp_rank > 0 and _shared_over_tp(master))
    ]
    if not counted:
        return torch.zeros(1, dtype=torch.float64, device=mesh.device)
    return sum_of_squares_at_once(counted) if mesh.device.type == "cuda" else sum_of_squares(counted)


def sum_of_squares(tensors: Sequence[Tensor]) -> Tensor:
    """Return the sum of the squares of all numbers in fp32 or bf16 tensors, fp64 [1]."""
    total = torch.zeros(1, dtype=torch.float64, device=tensors[0].device)
    for tensor in tensors:
        # Row by row: added up in fp32 at once, the squares of a table of 25 million lose the fourth digit of its norm.
        total += torch.linalg.vector_norm(tensor, dim=-1, dtype=torch.float32).double().square().sum()
    return total


def sum_of_squares_at_once(tensors: Sequence[Tensor]) -> Tensor:
    """Return the same by a few kernels for all tensors, in fp64 from the first square on: what a GPU is fast at."""
    return torch.stack(torch._foreach_norm(list(tensors), 2, dtype=torch.float64)).square().sum().view(1)


def _shared_over_tp(master: nn.Parameter) -> bool:
    if not isinstance(master, DTensor):
        return False
    names = master.device_mesh.mesh_dim_names or ()
    return "tp" in names and isinstance(master.placements[names.index("tp")], Replicate)


@torch.no_grad()
def clip_gradients(masters: MasterWeights, norm: float, limit: float) -> None:
    """Scale all gradients by limit / (norm + 1e-6) where that is below 1, as the original does; a limit of 0 clips nothing."""
    coefficient = limit / (norm + 1e-6)
    gradients = [local_gradient(m) for m in masters.by_name.values() if m.grad is not None]
    if gradients and limit > 0 and coefficient < 1:
        torch._foreach_mul_(gradients, coefficient)
