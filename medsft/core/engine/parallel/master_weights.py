"""Which tensors compute and which are trained.

The optimiser always works on fp32 masters. In fp32 they are the parameters themselves. In bf16 the parameters are a copy
that is cast once an iteration; each micro-batch's gradient is added to the master's in fp32 and freed at once, so gradients
are never held twice. With data parallel FSDP does both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial

from medsft.core.engine.nn.dtensor import local_part
from medsft.core.engine.nn.model import Decoder
from medsft.core.engine.parallel.mesh import Mesh


@dataclass(slots=True)
class MasterWeights:
    """The fp32 parameters that are trained, under their names, and how they feed the ones that compute."""

    by_name: dict[str, nn.Parameter]
    computing: dict[str, nn.Parameter]
    """The bf16 copies, empty where the masters compute themselves."""

    @torch.no_grad()
    def copy_to_compute(self) -> None:
        """Cast the masters into the weights that compute, after they changed."""
        if self.computing:
            targets: list[Tensor] = [local_part(p) for p in self.computing.values()]
            torch._foreach_copy_(targets, [local_part(self.by_name[name]) for name in self.computing])

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for master in self.by_name.values():
            master.grad = None


def make_master_weights(decoder: Decoder, *, compute_dtype: torch.dtype, data_parallel: bool) -> MasterWeights:
    """Split the fp32 parameters of `decoder` into masters and computing copies, which `MasterWeights.copy_to_compute` fills.

    The parameters are not read: memory that was read before it is written costs the system two page faults, not one, and the
    second is slow where several threads write.
    """
    masters = dict(decoder.named_parameters())
    if data_parallel or compute_dtype == torch.float32:
        return MasterWeights(masters, {})
    computing = {}
    for name, master in masters.items():
        owner, _, leaf = name.rpartition(".")
        copy = nn.Parameter(torch.empty_like(master, dtype=compute_dtype))
        setattr(decoder.get_submodule(owner), leaf, copy)
        copy.register_post_accumulate_grad_hook(_move_gradient_to(master))
        computing[name] = copy
    return MasterWeights(masters, computing)


def _move_gradient_to(master: nn.Parameter):  # type: ignore[no-untyped-def]
    def hook(parameter: Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None
        if master.grad is None:
            master.grad = gradient.float()
        else:
            local_gradient(master).add_(local_part(gradient))
        parameter.grad = None

    return hook


def allreduce_partial_gradients(masters: MasterWeights, mesh: Mesh) -> None:
    """Add up over the tensor-parallel ranks the gradients that each has a part of, in one message; FSDP has done so already.

    These are the gradients of norms, which saw the tokens of this rank only.
    """
    partial = []
    for master in masters.by_name.values():
        gradient = master.grad
        if isinstance(gradient, DTensor) and any(isinstance(placement, Partial) for placement in gradient.placements):
            assert isinstance(master, DTensor)
            partial.append(master)
    if not partial:
        return
    flat = torch.cat([local_gradient(master).flatten() for master in partial])
    dist.all_reduce(flat, group=mesh.devices.get_group("tp"))
    for master, values in zip(partial, flat.split([local_part(m).numel() for m in partial]), strict=True):
        master.grad = DTensor.from_local(values.view(local_part(master).shape), master.device_mesh, master.placements)


def local_gradient(master: nn.Parameter) -> Tensor:
    """Return this rank's part of a gradient that is there."""
    assert master.grad is not None
    return local_part(master.grad)
