"""The fp32 weights that the optimizer updates, and the weights that compute.

The optimizer always works on fp32 master weights. In fp32 they are the model's parameters themselves. In bf16 the model's
parameters are copies, cast from the masters once an iteration; the gradient of each micro-batch is added to the master's in
fp32 and freed at once, so gradients are never held twice. With data parallel FSDP does both. Frozen weights have no master.

With `--optimizer adamw8bit` the masters of a whole model in bf16 are bf16, and are the model's parameters; their gradients are
added up in fp32 all the same. FSDP adds up and reduces in fp32, too, and gives what comes out the format of the master: the
gradient that data-parallel ranks update by is rounded to bf16 once.

With an adapter FSDP has the frozen weights alone. What is trained is small: each data-parallel rank has all of it, and one
message averages the gradients of all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial

from medsft.core.config.lora import TRAINED_ROWS
from medsft.core.engine.formats.source import DTYPES
from medsft.core.engine.nn.adapters import FrozenLinear
from medsft.core.engine.nn.dtensor import local_part
from medsft.core.engine.nn.model import Decoder
from medsft.core.engine.nn.quantized import QuantizedWeight
from medsft.core.engine.nn.trained_rows import held_rows
from medsft.core.engine.parallel.mesh import Mesh

_MESSAGE = 1 << 24
"""Numbers that are added up over ranks at a time, 64 MiB: more in one message is not faster, and needs the memory."""


@dataclass(slots=True)
class MasterWeights:
    """This rank's weights by name: those that are trained, how they feed the model, and those that are frozen."""

    by_name: dict[str, nn.Parameter]
    """The masters, fp32 or bf16: what the optimizer updates and a checkpoint holds."""
    compute_copies: dict[str, nn.Parameter]
    """The model's bf16 copies of the masters; empty where the masters are the model's parameters."""
    frozen: dict[str, nn.Parameter] = field(default_factory=dict)
    """The model's parameters that are not trained, in the format that they are kept in."""
    quantized: dict[str, QuantizedWeight] = field(default_factory=dict)
    """The weights that are not trained and are kept in nf4."""
    tables: tuple[TrainedTable, ...] = ()
    """Frozen tables of tokens, rows of which are trained."""
    copied_over_dp: bool = False
    """Whether each data-parallel rank has all masters, and not a part of each."""

    @torch.no_grad()
    def copy_to_compute(self) -> None:
        """Cast the masters into the model's copies of them, after the masters changed."""
        for table in self.tables:
            table.write()
        if self.compute_copies:
            targets: list[Tensor] = [local_part(p) for p in self.compute_copies.values()]
            torch._foreach_copy_(targets, [local_part(self.by_name[name]) for name in self.compute_copies])

    def zero_grad(self) -> None:
        """Free the gradients."""
        for master in self.by_name.values():
            master.grad = None


@dataclass(frozen=True, slots=True)
class TrainedTable:
    """A frozen table of tokens, and the master of those of its rows that are trained."""

    table: nn.Parameter
    trained: nn.Parameter
    rows: tuple[int, ...]

    def write(self) -> None:
        """Write the current values of the trained rows into this rank's part of the table."""
        held = held_rows(self.table, self.trained, self.rows)
        local_part(self.table)[held.numbers] = held.trained[held.first :][: len(held.numbers)].to(self.table.dtype)


def freeze(
    decoder: Decoder,
    trainable: Collection[str],
    *,
    compute_dtype: torch.dtype,
    base_precision: str | None = None,
    master_dtype: torch.dtype = torch.float32,
) -> None:
    """Make every parameter that is not in `trainable` one that gets no gradient, in `compute_dtype`.

    With an adapter the matrices of the layers are kept in `base_precision`. What is trained gets `master_dtype`. Call it before
    FSDP divides the parameters, and while they are on the meta device: no fp32 memory is then taken for them.
    """
    for name, parameter in list(decoder.named_parameters()):
        if name not in trainable:
            owner, _, leaf = name.rpartition(".")
            module = decoder.get_submodule(owner)
            own = base_precision if leaf == "weight" and isinstance(module, FrozenLinear) else None
            if own == "nf4" and isinstance(module, FrozenLinear):
                module.quantize()
            else:
                kept = parameter.detach().to(DTYPES[own] if own else compute_dtype)
                _replace(decoder, name, nn.Parameter(kept, requires_grad=False))
        elif master_dtype != parameter.dtype:
            _replace(decoder, name, nn.Parameter(parameter.detach().to(master_dtype)))


def make_master_weights(decoder: Decoder, *, compute_dtype: torch.dtype, data_parallel: bool) -> MasterWeights:
    """Return the masters of the parameters of `decoder` that get gradients; in bf16, put copies for computing in their place.

    `MasterWeights.copy_to_compute` fills the copies. The parameters are not read here: memory that is read before it is written
    costs the system two page faults instead of one, and the second is slow where several threads write.
    """
    parameters = dict(decoder.named_parameters())
    masters = {name: p for name, p in parameters.items() if p.requires_grad}
    quantized = {
        f"{name}.weight": module.quantized
        for name, module in decoder.named_modules()
        if isinstance(module, FrozenLinear) and module.quantized is not None
    }
    parts = {id(p) for weight in quantized.values() for p in weight.parameters()}
    frozen = {name: p for name, p in parameters.items() if not (p.requires_grad or id(p) in parts)}
    adapter = decoder.adapter
    copies = {}
    if compute_dtype != torch.float32 and (adapter is not None or not data_parallel):
        for name, master in masters.items():
            if master.dtype == compute_dtype:
                _keep_gradient_in_fp32(master)
                continue
            copies[name] = nn.Parameter(torch.empty_like(master, dtype=compute_dtype))
            copies[name].register_post_accumulate_grad_hook(_move_gradient_to(master))
            _replace(decoder, name, copies[name])
    rows = adapter.rows if adapter else ()
    tables = [TrainedTable(frozen[table], masters[own], rows) for table, own in TRAINED_ROWS.items() if own in masters]
    copied = adapter is not None and data_parallel
    return MasterWeights(masters, copies, frozen, quantized, tuple(tables), copied_over_dp=copied)


def _replace(decoder: Decoder, name: str, parameter: nn.Parameter) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(decoder.get_submodule(owner), leaf, parameter)


def _keep_gradient_in_fp32(master: nn.Parameter) -> None:
    """Let the gradients of a bf16 parameter add up in fp32: the first micro-batch's is converted, others are added to it."""

    def hook(parameter: Tensor) -> None:
        assert parameter.grad is not None
        if parameter.grad.dtype != torch.float32:
            parameter.grad = parameter.grad.float()

    master.grad_dtype = None  # any
    master.register_post_accumulate_grad_hook(hook)


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
    """Add up over ranks the gradients of which each rank holds a part.

    Over the tensor-parallel ranks these are the gradients of norms, of which each rank has seen other tokens, and of factors
    of adapters and rows of tables that are whole on each rank. With data parallel FSDP has averaged gradients over the ranks,
    but not those of adapters: that happens here.
    """
    partial = []
    for master in masters.by_name.values():
        gradient = master.grad
        if isinstance(gradient, DTensor) and any(isinstance(placement, Partial) for placement in gradient.placements):
            assert isinstance(master, DTensor)
            partial.append(master)
    _allreduce([local_gradient(master) for master in partial], mesh.devices.get_group("tp"))
    for master in partial:
        assert isinstance(master, DTensor)
        master.grad = DTensor.from_local(local_gradient(master), master.device_mesh, master.placements)
    if masters.copied_over_dp:
        gradients = [local_gradient(master) for master in masters.by_name.values()]
        _allreduce(gradients, mesh.devices.get_group("dp"))
        torch._foreach_div_(gradients, float(mesh.layout.dp))


def _allreduce(tensors: Iterable[Tensor], group: dist.ProcessGroup) -> None:
    """Add up `tensors` over the ranks of `group` in place, many in one message, in fp32."""
    for together in _messages(tensors):
        flat = torch.cat([tensor.flatten().float() for tensor in together])
        dist.all_reduce(flat, group=group)
        for tensor, total in zip(together, flat.split([tensor.numel() for tensor in together]), strict=True):
            tensor.copy_(total.view(tensor.shape))


def _messages(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    together, count = list[Tensor](), 0
    for tensor in tensors:
        if together and count + tensor.numel() > _MESSAGE:
            yield together
            together, count = [], 0
        together.append(tensor)
        count += tensor.numel()
    if together:
        yield together


def local_gradient(master: nn.Parameter) -> Tensor:
    """Return this rank's part of the gradient of `master`, which must have one."""
    assert master.grad is not None
    return local_part(master.grad)
