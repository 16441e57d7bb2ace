"""The fp32 weights that the optimizer updates, and the weights that compute.

The optimizer always works on fp32 master weights. In fp32 they are the model's parameters themselves. In bf16 the model's
parameters are copies, cast from the masters once an iteration; the gradient of each micro-batch is added to the master's in
fp32 and freed at once, so gradients are never held twice. With data parallel FSDP does both. Frozen weights have no master.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial

from medsft.core.engine.nn.dtensor import local_part
from medsft.core.engine.nn.model import Decoder
from medsft.core.engine.parallel.mesh import Mesh


@dataclass(slots=True)
class MasterWeights:
    """This rank's weights by name: those that are trained, how they feed the model, and those that are frozen."""

    by_name: dict[str, nn.Parameter]
    """The fp32 masters: what the optimizer updates and a checkpoint holds."""
    compute_copies: dict[str, nn.Parameter]
    """The model's bf16 copies of the masters; empty where the masters are the model's parameters."""
    frozen: dict[str, nn.Parameter] = field(default_factory=dict)
    """The model's parameters that are not trained, in the compute format."""

    @torch.no_grad()
    def copy_to_compute(self) -> None:
        """Cast the masters into the model's copies of them, after the masters changed."""
        if self.compute_copies:
            targets: list[Tensor] = [local_part(p) for p in self.compute_copies.values()]
            torch._foreach_copy_(targets, [local_part(self.by_name[name]) for name in self.compute_copies])

    def zero_grad(self) -> None:
        """Free the gradients."""
        for master in self.by_name.values():
            master.grad = None


def freeze(decoder: Decoder, trainable: Collection[str], *, compute_dtype: torch.dtype) -> None:
    """Make every parameter that is not in `trainable` one of `compute_dtype` that gets no gradient.

    Call it before FSDP divides the parameters, and while they are on the meta device: no fp32 memory is then taken for them.
    """
    for name, parameter in list(decoder.named_parameters()):
        if name not in trainable:
            _replace(decoder, name, nn.Parameter(parameter.detach().to(compute_dtype), requires_grad=False))


def make_master_weights(decoder: Decoder, *, compute_dtype: torch.dtype, data_parallel: bool) -> MasterWeights:
    """Return the masters of the parameters of `decoder` that get gradients; in bf16, put copies for computing in their place.

    `MasterWeights.copy_to_compute` fills the copies. The parameters are not read here: memory that is read before it is written
    costs the system two page faults instead of one, and the second is slow where several threads write.
    """
    parameters = dict(decoder.named_parameters())
    masters = {name: p for name, p in parameters.items() if p.requires_grad}
    frozen = {name: p for name, p in parameters.items() if not p.requires_grad}
    if data_parallel or compute_dtype == torch.float32:
        return MasterWeights(masters, {}, frozen)
    copies = {}
    for name, master in masters.items():
        copies[name] = nn.Parameter(torch.empty_like(master, dtype=compute_dtype))
        copies[name].register_post_accumulate_grad_hook(_move_gradient_to(master))
        _replace(decoder, name, copies[name])
    return MasterWeights(masters, copies, frozen)


def _replace(decoder: Decoder, name: str, parameter: nn.Parameter) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(decoder.get_submodule(owner), leaf, parameter)


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
    """Sum over the tensor-parallel ranks, in one message, the gradients of which each rank holds a part.

    These are the gradients of norms: with sequence parallel a rank's norm sees the tokens of this rank only. With data parallel
    FSDP has summed them already.
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
    """Return this rank's part of the gradient of `master`, which must have one."""
    assert master.grad is not None
    return local_part(master.grad)
