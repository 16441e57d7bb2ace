"""The process group and the (pp, dp, tp) mesh of a run, and the few collectives that span all of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from medsft.core.engine.parallel.device import rank_device
from medsft.core.planning.layout import Layout
from medsft.errors import LaunchError

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
HOSTS_STORE = "MEDSFT_HOSTS_STORE"
"""Environment variable: 1 where this process holds the store through which ranks connect; by default rank 0 does."""
STORE_FILE = "MEDSFT_STORE_FILE"
"""Environment variable: a file through which the ranks of one machine connect, where torchrun has not started them."""


@dataclass(frozen=True, slots=True)
class Mesh:
    """This rank's coordinates, and the groups of ranks that it communicates with."""

    layout: Layout
    device: torch.device
    rank: int
    pp_rank: int
    dp_rank: int
    tp_rank: int
    devices: DeviceMesh
    """Axes `pp`, `dp`, `tp`, in this order."""
    embedding_group: dist.ProcessGroup | None
    """The first and the last pipeline stage at this rank's data and tensor coordinates; None without a pipeline."""

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank embeds tokens."""
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank computes the loss."""
        return self.pp_rank == self.layout.pp - 1

    @property
    def reports(self) -> bool:
        """Whether this is the one rank that writes events."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Return `values` added up over all ranks; every rank must call it."""
        if self.layout.world > 1:
            dist.all_reduce(values)
        return values

    def max(self, values: Tensor) -> Tensor:
        """Return the largest of each of `values` over all ranks; every rank must call it."""
        if self.layout.world > 1:
            dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return values

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.layout.world > 1:
            dist.barrier()

    def gather(self, value: object) -> list[object]:
        """Return every rank's `value`, in the order of ranks, on all of them."""
        if self.layout.world == 1:
            return [value]
        values: list[object] = [None] * self.layout.world
        dist.all_gather_object(values, value)
        return values


def open_mesh(layout: Layout, *, device_kind: str | None = None) -> Mesh:
    """Join the process group that torchrun prepared, on the device of this rank, which has to be of the kind that was planned.

    Raises `LaunchError` when the size of the group is not the layout's, and what `rank_device` raises.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world != layout.world:
        raise LaunchError(f"{world} processes were started, the plan has {layout.world} ({layout}).")
    device = rank_device(device_kind)
    use_cuda = device.type == "cuda"
    if use_cuda:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # gloo for everything on a CPU, and beside nccl for objects and asynchronous checkpoints
        backend = "cpu:gloo,cuda:nccl" if use_cuda else "gloo"
        rank = int(os.environ.get("RANK", "0"))
        dist.init_process_group(backend, store=_store(rank, world), rank=rank, world_size=world, timeout=COLLECTIVE_TIMEOUT)
    rank = dist.get_rank()
    shape = (layout.pp, layout.dp, layout.tp)
    devices = init_device_mesh(device.type, shape, mesh_dim_names=("pp", "dp", "tp"))
    return Mesh(layout, device, rank, *layout.coordinates(rank), devices, _embedding_group(layout, rank))


def _store(rank: int, world: int) -> dist.Store:
    """Return the store through which the ranks of this start connect."""
    if world == 1:
        return dist.HashStore()
    if file := os.environ.get(STORE_FILE):
        return dist.FileStore(file, world)
    hosts = os.environ.get(HOSTS_STORE, str(int(rank == 0))) == "1"
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(address, port, world, is_master=hosts, timeout=COLLECTIVE_TIMEOUT)


def _embedding_group(layout: Layout, rank: int) -> dist.ProcessGroup | None:
    """Return the group of this rank's first and last stage; all ranks make all groups, also those that they are not in."""
    mine = None
    if layout.pp > 1:
        for dp_rank in range(layout.dp):
            for tp_rank in range(layout.tp):
                pair = [layout.rank(stage, dp_rank, tp_rank) for stage in (0, layout.pp - 1)]
                group = dist.new_group(pair)
                if layout.coordinates(rank)[1:] == (dp_rank, tp_rank):
                    mine = group
    return mine
