"""Training steps on fake CUDA tensors: devices, shapes, kernels and live memory as on a GPU, without one and without numbers.

`measure_step` builds model, master weights and optimizer of a run, and has `Trainer` do two iterations. torch's fake tensors
have a device and a shape but no memory, so a model of 8 billion parameters takes seconds and no memory. An operation that meets
tensors on two devices raises, as on a GPU. What is read from a tensor (`item`, `nonzero`) would make the host wait for the GPU:
it is counted, and a made-up value given.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_iter

from medsft.core.config.lora import LoraSpec
from medsft.core.config.run_config import RunConfig
from medsft.core.data.dataset.subset import Subset
from medsft.core.data.tokenizers.template import Role
from medsft.core.engine.formats.source import DTYPES
from medsft.core.engine.kernels import dynamic8, nf4
from medsft.core.engine.kernels.scratch import Scratch
from medsft.core.engine.nn import adapters, cuda_attention, quantized
from medsft.core.engine.nn.adapters import Adapter
from medsft.core.engine.parallel.master_weights import make_master_weights
from medsft.core.engine.parallel.mesh import Mesh
from medsft.core.engine.parallel.sharding import build_stage
from medsft.core.engine.train.batches import Batcher
from medsft.core.engine.train.head import LossHead
from medsft.core.engine.train.optim import make_optimizer
from medsft.core.engine.train.step import SingleStage
from medsft.core.engine.train.trainer import Trainer
from medsft.core.models.config import ModelConfig
from medsft.core.planning.layout import Layout
from medsft.core.planning.order import SampleOrder
from medsft.core.planning.selection import Split
from medsft.core.planning.trainable import trainable_names

DEVICE, _SILENT = torch.device("cuda", 0), torch.device("lazy", 0)
_ROUNDED_TO = 512
"""Bytes: torch's allocator gives memory in multiples of this."""
_MULTIPROCESSORS = 132
"""Of an H100: the flash kernel's backward pass takes memory by it."""
_FLASH_ROWS = 128
"""Rows that the flash kernel's backward pass adds to each document of its workspace."""
_MADE_UP: dict[type, float] = {bool: True, int: 1, float: 1.0}
_MODE = FakeTensorMode(allow_non_fake_inputs=True)
"""One for all: constants that the engine keeps for a device may not meet tensors of another one."""
aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class FakeStep:
    """What one iteration took, after one that made the optimizer's state."""

    peak_bytes: int
    """Most live bytes: weights, gradients, moments, activations and workspaces. No context, no gaps."""
    resident_bytes: int
    """Live between two iterations: weights, masters and moments."""
    kernels: Counter[str]
    """Operations that are no views, by name."""
    syncs: Counter[str]
    """Those for which the host waits for the GPU, by name: values that are read, tensors copied to and from the host."""


class Watch(TorchDispatchMode):
    """Counts operations and live memory of what lies on the GPU. It must be entered after the fake tensors' mode."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows
        """What `nonzero` finds."""
        self.kernels: Counter[str] = Counter()
        self.syncs: Counter[str] = Counter()
        self.live = self.peak = 0
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def begin(self) -> None:
        """Forget what was counted so far, but not what is alive."""
        self.kernels, self.syncs, self.peak = Counter(), Counter(), self.live

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default:
            return _SILENT if args[0].device.type == "cuda" else args[0].device  # C++ asks, see `fake_gpu`
        kwargs = dict(kwargs or {})
        if kwargs.get("device") == _SILENT:
            kwargs["device"] = DEVICE
        name = func.overloadpacket.__name__
        out = self._made_up(func, args) if name in ("_local_scalar_dense", "nonzero") else NotImplemented
        if out is NotImplemented:
            out = _without_description(func, args, kwargs)
        if out is NotImplemented:
            out = func(*args, **kwargs)
        tensors = [*_on_gpu(args), *_on_gpu(out)]
        if tensors and not func.is_view and name not in ("detach", "empty", "empty_like", "empty_strided"):
            self.kernels[name] += 1
        if _crosses(name, args, kwargs, out):
            self.syncs[name] += 1
        for tensor in _on_gpu(out):
            self._hold(tensor.untyped_storage())
        self.peak = max(self.peak, self.live + _workspace(name, args))
        return out

    def _made_up(self, func: Any, args: Sequence[Any]) -> Any:
        """Return a value where the real operation reads one from a tensor, and count it where that lies on the GPU."""
        (tensor,) = args
        if tensor.device.type == "cuda":
            self.syncs[func.overloadpacket.__name__] += 1
        elif not isinstance(tensor, FakeTensor):  # on the host, with numbers
            with _disable_current_modes():
                return func(tensor)
        if func.overloadpacket.__name__ == "nonzero":
            return torch.empty(self.rows, tensor.ndim, dtype=torch.int64, device=tensor.device)
        kind = bool if tensor.dtype == torch.bool else float if tensor.is_floating_point() else int
        return _MADE_UP[kind]

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._storages:
            return
        size = -(-storage.nbytes() // _ROUNDED_TO) * _ROUNDED_TO
        self._storages[key] = weakref.ref(storage, partial(self._release, key, size))
        self.live += size

    def _release(self, key: int, size: int, _: object) -> None:
        del self._storages[key]
        self.live -= size


def _on_gpu(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_iter(tree) if isinstance(leaf, Tensor) and leaf.device.type == "cuda"]


def _crosses(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> bool:
    """Tell whether an operation copies between host and GPU and the host waits for it."""
    if name not in ("_to_copy", "copy_") or kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]):
        return False
    source, target = (args[0], out) if name == "_to_copy" else (args[1], args[0])
    return source.numel() > 0 and source.device.type != target.device.type


def _without_description(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return the result of an operation that torch describes wrongly: an argument is missing (2.14) or taken for another."""
    if func is aten.baddbmm.dtype_out:
        return kwargs["out"]
    if func is not aten._efficient_attention_backward.default:
        return NotImplemented
    return *(torch.empty_like(tensor) for tensor in args[1:4]), torch.empty(0, device=DEVICE)


def _workspace(name: str, args: Sequence[Any]) -> int:
    """Return the bytes that a kernel takes for itself while it runs, as in torch's flash_api.cpp: `mha_varlen_bwd`.

    Its deterministic form adds up the gradient of q in so many parts that all multiprocessors have work. Gradients of keys and
    values are there for each query head before they are added up.
    """
    if name != "_flash_attention_backward":
        return 0
    _, q, k, *_ = args
    documents = args[6].numel() - 1
    (tokens, heads, size), kv_heads = q.shape, k.shape[1]
    multiple = 32 if size <= 128 else 64
    rows, rounded = tokens + _FLASH_ROWS * documents, -(-size // multiple) * multiple
    parts = -(-_MULTIPROCESSORS // (documents * heads))
    repeated = 2 * len(k) * heads * size * k.element_size() if kv_heads != heads else 0
    return 4 * parts * rows * heads * rounded + 4 * heads * rows + repeated


@contextmanager
def fake_gpu(*, capability: tuple[int, int] = (9, 0), rows: int = 1) -> Iterator[Watch]:
    """Have the code inside see one GPU of this compute capability; its tensors have no memory. `nonzero` finds `rows`.

    Python code sees tensors on a CUDA device. torch's autograd in C++ is told of another kind of device,
    one that it computes on without streams and in the thread of the caller: a build without CUDA can do no more.
    """
    watch = Watch(rows)
    _keep_real_constants()
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(cuda_attention, "compute_capability", return_value=capability))
        stack.enter_context(_known_to_torch())
        stack.enter_context(mock.patch.object(FakeTensor, "is_cuda", property(_is_on_gpu), create=True))
        stack.enter_context(mock.patch.object(FakeTensor, "data_ptr", _address, create=True))
        stack.enter_context(mock.patch.object(nn.Module, "to_empty", _to_empty))
        for module in (adapters, quantized):
            stack.enter_context(mock.patch.object(module, "_scratch", Scratch()))
        stack.enter_context(mock.patch.object(Tensor, "pin_memory", lambda tensor: tensor))
        stack.enter_context(_MODE)
        stack.enter_context(watch)
        yield watch


def _keep_real_constants() -> None:
    """Make the constants that the engine keeps for a CPU: kernels of a later test would find no numbers in fake ones."""
    on_cpu = torch.device("cpu")
    nf4._constants(on_cpu)
    nf4._thresholds()
    for signed in (True, False):
        dynamic8.table(signed, on_cpu)


def _to_empty(module: nn.Module, *, device: torch.device) -> nn.Module:
    """Do what `nn.Module.to_empty` does, which would have a fake tensor become another one and cannot."""
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                made = torch.empty_like(parameter, device=device)
                owner._parameters[name] = nn.Parameter(made, requires_grad=parameter.requires_grad)
    return module


def _is_on_gpu(tensor: FakeTensor) -> bool:
    return tensor.device.type == "cuda"


@contextmanager
def _known_to_torch() -> Iterator[None]:
    """Let a build without CUDA name CUDA devices: what switches between devices and does nothing, for fake ones will do.

    c10's registry has a pointer for each kind of device (c10/core/DeviceType.h).
    """
    cuda, meta = 1, 14
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    registry = (ctypes.c_void_p * (meta + 1)).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    missing = registry[cuda] is None
    if missing:
        registry[cuda] = registry[meta]
    try:
        yield
    finally:
        if missing:
            registry[cuda] = None


def _address(tensor: Tensor) -> int:
    """Return a number that tensors on the same memory share; code that saves memory compares addresses."""
    return tensor.untyped_storage()._cdata + tensor.storage_offset() * tensor.element_size()


def measure_step(
    config: ModelConfig,
    lengths: Sequence[int],
    micro_batches: int = 1,
    recompute: str = "none",
    adapter: LoraSpec | None = None,
    *,
    precision: str = "bf16",
    base_precision: str | None = None,
    supervised: float = 0.25,
    capability: tuple[int, int] = (9, 0),
    **options: Any,
) -> FakeStep:
    """Return what an iteration of a run takes on one GPU, of `micro_batches` micro-batches with documents of `lengths` tokens.

    `supervised` is the share of each document that is trained on; `options` are fields of `RunConfig`.
    """
    batcher = _batcher(lengths, micro_batches, supervised)
    rows = sum(math.ceil(supervised * length) for length in lengths)
    first, batch = _batcher([2], 1, 0.5).build(np.arange(1)), batcher.build(np.arange(len(lengths) * micro_batches))
    with fake_gpu(capability=capability, rows=rows) as watch:
        trainer = _trainer(config, recompute, adapter, precision, base_precision or precision, options)
        trainer.step(first, 1, 1e-5)
        watch.begin()
        resident = watch.live
        trainer.step(batch, 2, 1e-5)
        return FakeStep(peak_bytes=watch.peak, resident_bytes=resident, kernels=watch.kernels, syncs=watch.syncs)


def _batcher(lengths: Sequence[int], micro_batches: int, supervised: float) -> Batcher:
    labels = np.tile(np.asarray(lengths, np.int64), micro_batches)
    count = len(labels)
    zeros = np.zeros(count, np.int64)
    answers = np.ceil(supervised * labels).astype(np.int64)
    subset = Subset(indices=np.arange(count), starts=zeros, lengths=labels + 1, trained_from=zeros, answer_labels=answers)
    data = SimpleNamespace(
        tokens=lambda number: np.ones(labels[number] + 1, np.int32),
        roles=lambda number: np.repeat(
            [Role.QUESTION, Role.ANSWER], [labels[number] + 1 - answers[number], answers[number]]
        ).astype(np.int8),
    )
    split = Split(data=cast(Any, data), subset=subset, order=SampleOrder(count, count, seed=0))
    return Batcher(split, loss_mask=0.0, dp=1, dp_rank=0, micro_batch=len(lengths), in_order=True)


def _trainer(
    model: ModelConfig,
    recompute: str,
    lora: LoraSpec | None,
    precision: str,
    base_precision: str,
    options: Mapping[str, Any],
) -> Trainer:
    """Return the trainer of one GPU with weights that nobody has read, as `build_trainer` puts it together."""
    run_config = RunConfig(**options)
    layout = Layout(pp=1, dp=1, tp=1)
    mesh = Mesh(layout, DEVICE, 0, 0, 0, 0, cast(Any, SimpleNamespace(get_group=lambda *_: None)), None)
    adapter = Adapter(lora=lora, base_precision=base_precision) if lora else None
    decoder = build_stage(
        model,
        mesh,
        compute_dtype=DTYPES[precision],
        trainable=trainable_names(model, lora),
        recompute=recompute,
        adapter=adapter,
    )
    masters = make_master_weights(decoder, compute_dtype=DTYPES[precision], data_parallel=False)
    masters.copy_to_compute()
    plan = SimpleNamespace(config=run_config, base=SimpleNamespace(model=model), trained_model=model, precision=precision)
    return Trainer(
        plan=cast(Any, plan),
        run=cast(Any, SimpleNamespace(requested=lambda _: False, clear_request=lambda _: None)),
        mesh=mesh,
        masters=masters,
        optimizer=make_optimizer(masters, run_config),
        executor=SingleStage(decoder, LossHead(decoder, model.vocab_size, mesh), mesh),
        train_batches=cast(Any, None),
        val_batches=None,
        state=cast(Any, None),
        saver=cast(Any, SimpleNamespace(is_written=lambda: True)),
        events=None,
    )
