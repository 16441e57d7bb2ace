"""How much memory a rank needs, from the model's sizes and the layout alone.

The formula is kept simple enough to check by hand. For a CPU its constants were fitted to measured peaks (docs/performance.md),
for a GPU `gpu_memory` counts what is alive; a rehearsal measures the real thing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from medsft.core.models.config import ModelConfig
from medsft.core.models.tensors import EMBEDDING, OUTPUT
from medsft.core.planning.adapter import AdapterPlan
from medsft.core.planning.gpu_memory import GpuPass, activations_on_gpu, communicator_bytes, message_bytes
from medsft.core.planning.layout import Layout, stage_layers, stage_shapes
from medsft.core.planning.optimizer import ADAMW, moment_bytes, weight_bytes
from medsft.core.planning.trainable import trainable_names

PROCESS_BYTES = {"cpu": 370 << 20, "cuda": 1 << 30}
"""A process with torch loaded, and small gaps in its heap: resident memory on a CPU, context and workspaces on a GPU."""
_GPU_LIBRARIES_BYTES = 400 << 20
"""Libraries for GPUs in a process on a CPU, between those of torch 2.10 and 2.14 (CUDA 12.8 and 13). Much of it is shared."""
LOGITS_BYTES = {"cpu": 128 << 20, "cuda": 1 << 30}
"""Size of the largest fp32 tensor of logits that the loss computes at once (`engine.nn.loss`). On a GPU, where each
is followed by a pass over the gradient of the output projection, there are few of them."""
_LOGITS_COPIES = 2
"""Tensors of that size that exist at once: the logits and their softmax."""
_GAPS_OF_TABLES = 1.25
"""Times that a CPU's heap has the gradient of a table of tokens beside the sum to which it is added: it is as large as all else
that a micro-batch makes, and fits into no gap. Measured with tables of 13, 50 and 101 MB."""
_COLLECTIVES_BYTES, _NEIGHBORS_BYTES = 57 << 20, 24 << 20
"""Buffers and threads of a CPU process that adds up over others, or gives hidden states to the next stage alone."""
_ADAPTER_PROCESS_BYTES = {"cpu": 345 << 20, "cuda": 1 << 30}
"""The same as `PROCESS_BYTES` of a run that trains an adapter: no products for the gradients of weights."""
_GATHERED_COPIES = 4
"""Times that a CPU's heap has the frozen layers which data-parallel ranks gather: a message and what is cut out of it, in the
forward and in the backward pass. What is freed lies between activations, and the next layer does not fit there."""
_ADAPTER_SLACK = 1.15
"""Activations beside a frozen model as they were measured on a CPU (64 M parameters, 120 and 490 tokens), by their sum."""
_KEPT_BY_MALLOC = 0.75
"""Share of the memory that data-parallel ranks free and take again each iteration, and that a CPU process never gives back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Bytes on the rank that needs most, by what holds them."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    process: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.process


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a rank computes, apart from the model."""

    stream_tokens: int
    """Tokens in the largest micro-batch of a rank."""
    num_micro_batches: int
    bf16: bool
    recompute: str
    device_kind: str
    reshard: bool = False
    """Whether data-parallel ranks gather the weights of a layer for each pass, see `RunPlan.reshard`."""
    optimizer: str = ADAMW
    torch_for_gpus: bool = False
    """See `Devices`."""


def estimate_memory(
    model: ModelConfig,
    layout: Layout,
    work: Workload,
    trainable: Collection[str] | None = None,
    *,
    adapter: AdapterPlan | None = None,
) -> MemoryEstimate:
    """Return the estimate for the heaviest pipeline stage. `trainable` names the weights that are trained (default: all), or an
    `adapter` is trained beside them.

    Master weights and both Adam moments, of the formats of `planning.optimizer`, and fp32 gradients are divided over the
    data-parallel ranks; the weights that compute, where they are not the masters themselves, and the gradients until they are
    added up over the ranks, are whole on each of them. Frozen weights have the compute format alone; with data parallel each
    rank holds its shard of them and the gathered whole.
    An adapter has all of these whole on each data-parallel rank, and its frozen base in a format of its own (`AdapterPlan`).
    """
    if adapter is not None:
        stages = [_stage_with_adapter(model, layout, work, stage, adapter) for stage in range(layout.pp)]
    else:
        names = trainable_names(model) if trainable is None else trainable
        stages = [_stage_memory(model, layout, work, stage, names) for stage in range(layout.pp)]
    return max(stages, key=lambda estimate: estimate.total)


def stage_weights(model: ModelConfig, pp: int, stage: int) -> dict[str, int]:
    """Return the parameters in each weight of a pipeline stage; a tied embedding is on the first and on the last stage."""
    return {name: math.prod(shape) for name, shape in stage_shapes(model, pp, stage).items()}


def _stage_memory(model: ModelConfig, layout: Layout, work: Workload, stage: int, trainable: Collection[str]) -> MemoryEstimate:
    sizes = stage_weights(model, layout.pp, stage)
    parameters = math.ceil(sum(size for name, size in sizes.items() if name in trainable) / layout.tp)
    frozen = math.ceil(sum(size for name, size in sizes.items() if name not in trainable) / layout.tp)
    shard = math.ceil(parameters / layout.dp)
    unit = 2 if work.bf16 else 4
    master = weight_bytes(work.optimizer, bf16=work.bf16, adapter=False)
    computing = parameters * unit if master != unit or layout.dp > 1 else 0
    gathered = frozen * unit if layout.dp > 1 else 0
    frozen_bytes = math.ceil(frozen / layout.dp) * unit + gathered
    gradients = 4 * (parameters if layout.dp > 1 else shard)
    process = _process_bytes(layout, work)
    if work.device_kind == "cuda":
        several = work.num_micro_batches > 1  # or else FSDP reduces the gradients of each layer as they come
        gradients = gradients if several else 4 * shard
        head = EMBEDDING if model.tie_embeddings else OUTPUT
        gpu = _gpu_pass(model, layout, work, stage, trains_head=head in trainable)
        activations = activations_on_gpu(model, layout, gpu, gradients=gradients, whole=several)
        if layout.dp > 1:
            layer, ends = _largest_layer_and_ends(sizes, layout.tp)
            process += message_bytes(layer, ends, unit=unit)
            computing = min(computing, unit * (layer + ends)) if work.reshard else computing
    else:
        activations = _activations_on_cpu(model, layout, work, stage, gradients)
        process += _gaps_of_tables(model, layout, sizes, trainable)
        if layout.dp > 1:
            process += int(_KEPT_BY_MALLOC * (computing + gathered + gradients))
    return MemoryEstimate(
        weights=master * shard + computing + frozen_bytes,
        gradients=gradients,
        optimizer=math.ceil(moment_bytes(work.optimizer) * shard),
        activations=activations,
        process=process,
    )


def _gaps_of_tables(model: ModelConfig, layout: Layout, sizes: Mapping[str, int], trainable: Collection[str]) -> int:
    """Return what a CPU's heap has beside the gradients of the tables of a stage; a tied one has a gradient at each end."""
    tables = sum(sizes.get(name, 0) for name in (EMBEDDING, OUTPUT) if name in trainable)
    twice = model.tie_embeddings and layout.pp == 1
    return math.ceil(_GAPS_OF_TABLES * 4 * tables * (2 if twice else 1) / layout.tp)


def _activations_on_cpu(model: ModelConfig, layout: Layout, work: Workload, stage: int, gradients: int) -> int:
    in_flight = min(work.num_micro_batches, layout.pp - stage)
    num_layers = len(stage_layers(model, layout.pp)[stage])
    activations = activation_bytes(model, layout, work, num_layers) * in_flight
    if stage == layout.pp - 1:
        activations += _logits_bytes(model, layout, work)
    if work.num_micro_batches == 1:  # gradients then take the place of the activations that they are computed from
        activations = max(0, activations - gradients)
    return activations


def _gpu_pass(
    model: ModelConfig, layout: Layout, work: Workload, stage: int, *, trains_head: bool, adapter: AdapterPlan | None = None
) -> GpuPass:
    return GpuPass(
        tokens=work.stream_tokens,
        in_flight=min(work.num_micro_batches, layout.pp - stage),
        layers=len(stage_layers(model, layout.pp)[stage]),
        unit=2 if work.bf16 else 4,
        recompute=work.recompute,
        has_loss=stage == layout.pp - 1,
        trains_head=trains_head,
        adapter_numbers=None if adapter is None else adapter.kept_for_backward(),
        logits_bytes=LOGITS_BYTES[work.device_kind],
    )


def _largest_layer_and_ends(sizes: Mapping[str, int], tp: int) -> tuple[int, int]:
    """Return the parameters of the largest layer of a rank, and of what lies outside of layers."""
    layers: Counter[str] = Counter()
    for name, size in sizes.items():
        layers[name.split(".")[2] if name.startswith("model.layers.") else ""] += size
    ends = layers.pop("", 0)
    return math.ceil(max(layers.values(), default=0) / tp), math.ceil(ends / tp)


def _stage_with_adapter(model: ModelConfig, layout: Layout, work: Workload, stage: int, adapter: AdapterPlan) -> MemoryEstimate:
    unit = 2 if work.bf16 else 4
    trained = adapter.trained_on_rank(model, layout, stage)
    copies = trained * unit if work.bf16 else 0
    num_layers = len(stage_layers(model, layout.pp)[stage])
    in_flight = min(work.num_micro_batches, layout.pp - stage)
    frozen, gathered = adapter.frozen_on_rank(model, layout, stage, unit=unit)
    if work.device_kind == "cuda":
        gpu = _gpu_pass(model, layout, work, stage, trains_head=False, adapter=adapter)
        activations = activations_on_gpu(model, layout, gpu, gradients=4 * trained, whole=work.num_micro_batches > 1)
    else:
        kept, at_work = adapter_activation_bytes(model, layout, work, num_layers, adapter)
        activations = int(_ADAPTER_SLACK * kept * in_flight) + at_work
        if stage == layout.pp - 1:
            logits = min(LOGITS_BYTES[work.device_kind], _logits_bytes(model, layout, work))
            activations += _LOGITS_COPIES * logits
    process = _process_bytes(layout, work) - PROCESS_BYTES[work.device_kind] + _ADAPTER_PROCESS_BYTES[work.device_kind]
    if work.device_kind == "cpu" and layout.dp > 1:
        process += _GATHERED_COPIES * adapter.layer_bytes(model, layout, stage, unit=unit)
    return MemoryEstimate(
        weights=4 * trained + copies + frozen + gathered,
        gradients=4 * trained,
        optimizer=math.ceil(moment_bytes(work.optimizer) * trained),
        activations=activations + adapter.converted(model, layout.tp, unit=unit),
        process=process,
    )


def _logits_bytes(model: ModelConfig, layout: Layout, work: Workload) -> int:
    at_once = _LOGITS_COPIES * LOGITS_BYTES[work.device_kind]
    return min(at_once, 4 * work.stream_tokens * math.ceil(model.vocab_size / layout.tp))


def _process_bytes(layout: Layout, work: Workload) -> int:
    if work.device_kind == "cuda":
        return PROCESS_BYTES["cuda"] + communicator_bytes(layout)
    alone = PROCESS_BYTES["cpu"] + work.torch_for_gpus * _GPU_LIBRARIES_BYTES
    if layout.world == 1:
        return alone
    return alone + (_NEIGHBORS_BYTES if layout.world == layout.pp else _COLLECTIVES_BYTES)


def adapter_activation_bytes(
    model: ModelConfig, layout: Layout, work: Workload, num_layers: int, adapter: AdapterPlan
) -> tuple[int, int]:
    """Return the bytes that one micro-batch keeps beside a frozen model for its backward pass, and those that are at work then.

    Per token and layer, in units of the computing format: the residual stream twice; what queries, keys and values, and gate
    and up are made from (whole with tensor parallel); queries, keys, values and the output of attention; gate and up; x A^T of
    each adapter. No product is made for the gradient of a frozen weight, so less is there beside that than in full fine-tuning:
    in one layer at a time gate, up, their product and the gradients of these.
    """
    unit = 2 if work.bf16 else 4
    h, d, inner = model.hidden_size, model.head_dim, model.intermediate_size / layout.tp
    attention = 2 * (model.num_heads + model.num_kv_heads) * d / layout.tp
    without_mlp = 2 * h / layout.tp + 2 * h + attention + adapter.kept_for_backward()
    at_work = 4 * inner + 2 * h
    if work.recompute == "full":
        kept, at_work = num_layers * h / layout.tp, at_work + without_mlp + 2 * inner
    elif work.recompute == "selective":
        kept, at_work = num_layers * without_mlp, at_work + 2 * inner
    else:
        kept = num_layers * (without_mlp + 2 * inner)
    return math.ceil(work.stream_tokens * unit * kept), math.ceil(work.stream_tokens * unit * at_work)


def activation_bytes(model: ModelConfig, layout: Layout, work: Workload, num_layers: int) -> int:
    """Return the bytes of the activations of one micro-batch in `num_layers` layers, as they peak in the backward pass.

    Per token and layer, in units of the computing format: the residual stream and the norms' outputs (hidden size each, twice),
    queries and keys (twice, for the backward rotates them back), values and the attention's output, gate and up (feed-forward
    size each), and as much again as one of them for what the allocator cannot use. In one layer at a time their product and its
    gradient too. The norms' backward works in fp32.
    """
    unit = 2 if work.bf16 else 4
    h, d = model.hidden_size, model.head_dim
    heads, kv_heads = model.num_heads / layout.tp, model.num_kv_heads / layout.tp
    sequence_share = h / layout.tp  # with sequence parallel the norms and the residual stream are divided too
    attention = 2 * (heads + kv_heads) * d + kv_heads * d + heads * d
    without_mlp = unit * (4 * sequence_share + attention) + 2 * 4 * sequence_share
    feed_forward = unit * model.intermediate_size / layout.tp
    if work.recompute == "full":
        per_token = num_layers * unit * sequence_share + without_mlp + 4 * feed_forward
    elif work.recompute == "selective":
        per_token = num_layers * without_mlp + 4 * feed_forward
    else:
        per_token = num_layers * (without_mlp + 3 * feed_forward) + feed_forward
    return math.ceil(work.stream_tokens * per_token)
