"""Chooses what a person left open: processes, parallel sizes and micro-batch, by what fits the memory of the devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice

import numpy as np

from medsft.core.config.run_config import RunConfig
from medsft.core.devices import Devices
from medsft.core.models.config import ModelConfig
from medsft.core.planning.adapter import AdapterPlan
from medsft.core.planning.layout import (
    Layout,
    check_gpus,
    check_layout,
    check_processes,
    padded_model,
    smaller_first,
    valid_tensor_sizes,
)
from medsft.core.planning.memory import MemoryEstimate, Workload, estimate_memory
from medsft.core.planning.order import SampleOrder, deal_in_order, deal_to_ranks, micro_batches_per_rank
from medsft.core.planning.recompute import KINDS, recompute_cost, relative_speed
from medsft.errors import ConfigError, Problem

_FITS = 0.9
"""Share of a device's memory that a plan may fill; the estimate is no better than that."""
_LARGEST_MICRO_BATCH = 32
_ENOUGH_TOKENS = {"cpu": 2560, "cuda": 1 << 30}
"""Larger streams do not make a CPU faster, they only take its memory; much smaller ones spend their time on the weights."""
_SAMPLED_BATCHES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutInputs:
    """Inputs to choosing the layout and the micro-batch."""

    config: RunConfig
    global_batch: int
    """Documents in one iteration."""
    model: ModelConfig
    """Sizes without padding, which depends on the tensor-parallel size in the original's recipe."""
    tp: int | None
    """Tensor-parallel size of the flag or of the base model's folder."""
    pp: int | None
    devices: Devices
    precision: str
    batches: tuple[np.ndarray, ...]
    """Labels of the documents of some global batches; see `sample_batches`."""
    longest: int
    """Labels of the longest document."""
    adapter: AdapterPlan | None = None
    """What is trained beside a frozen model; None: all weights are trained."""
    streams: dict[tuple[int, int], int] = field(default_factory=dict, compare=False)
    """Tokens of the largest stream by data-parallel size and micro-batch, as far as documents were dealt: that takes time, and
    is the same for every kind of training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutChoice:
    """A layout with its micro-batches and what they need."""

    layout: Layout
    nproc_per_node: int
    micro_batch: int
    num_micro_batches: int
    stream_tokens: int
    """Tokens of the largest micro-batch."""
    work: Workload
    memory: MemoryEstimate
    """Of the rank that needs most."""


@dataclass(frozen=True, slots=True)
class Way:
    """What is done to need less memory."""

    recompute: str
    reshard: bool


@dataclass(frozen=True, slots=True)
class _Option:
    """A layout, and what is done there to need less memory."""

    layout: Layout
    nproc_per_node: int
    way: Way
    tokens: Callable[[int], int]
    """Those of the largest stream with this micro-batch."""


def sample_batches(order: SampleOrder, labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the labels of the documents in the first global batches of the run, each int64 [global_batch]."""
    count = min(_SAMPLED_BATCHES, -(-len(labels) // order.global_batch))
    return tuple(labels[order.batch(iteration)] for iteration in range(count))


def sequential_batches(global_batch: int, labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the labels of the documents in the first batches of a validation, each int64 [at most global_batch]."""
    starts = islice(range(0, len(labels), global_batch), _SAMPLED_BATCHES)
    return tuple(labels[start : start + global_batch] for start in starts)


def choose(inputs: LayoutInputs) -> LayoutChoice:
    """Choose the layout, then the largest micro-batch that fits, and on a GPU what is recomputed.

    Raises `ConfigError` for sizes that cannot work.
    """
    nproc = _processes(inputs)
    world = nproc * inputs.config.nodes
    tp, pp = _levels(inputs, nproc)
    problems: list[Problem] = []
    if inputs.devices.kind == "cuda":
        problems = check_gpus(tp, pp, nproc_per_node=nproc, nodes=inputs.config.nodes, gpus=inputs.devices.count)
    problems = problems or check_processes(tp, pp, nproc_per_node=nproc, nodes=inputs.config.nodes)
    layout = Layout(pp=pp, dp=max(1, world // (tp * pp)), tp=tp)
    problems += check_layout(inputs.model, layout, global_batch=inputs.config.global_batch)
    if not problems and inputs.config.rules.deals_in_order:
        problems += _check_blocks(inputs.config, layout)
    if problems:
        raise ConfigError(problems)
    return _fastest(inputs, layout, nproc)


def _processes(inputs: LayoutInputs) -> int:
    """Return the processes on each node: as asked, one for each GPU, or on a CPU what the sizes need."""
    config, devices = inputs.config, inputs.devices
    if config.nproc_per_node:
        return config.nproc_per_node
    if devices.kind == "cuda":
        return devices.count
    return max(1, -(-(inputs.tp or 1) * (inputs.pp or 1) // config.nodes))


def _levels(inputs: LayoutInputs, nproc: int) -> tuple[int, int]:
    """Return (tp, pp) as given, or else with the least splitting whose memory fits; the most splitting when none does."""
    tp, pp, model = inputs.tp, inputs.pp, inputs.model
    if tp is not None and pp is not None:
        return tp, pp
    world = nproc * inputs.config.nodes
    valid = valid_tensor_sizes(model)
    candidates = [
        (t, p)
        for t, p in smaller_first(world)
        if t in valid and nproc % t == 0 and p <= model.num_layers and t == (tp or t) and p == (pp or p)
    ]
    for t, p in candidates:
        layout = Layout(pp=p, dp=world // (t * p), tp=t)
        smallest = inputs.config.micro_batch or 1
        if any(_fits(inputs, _with_micro_batch(inputs, option, smallest)) for option in _options(inputs, layout, nproc)):
            return t, p
    return candidates[-1] if candidates else (tp or 1, pp or 1)


def _check_blocks(config: RunConfig, layout: Layout) -> list[Problem]:
    """The original deals blocks of `micro_batch * dp` documents: the global batch must be made of whole ones."""
    if config.global_batch % layout.dp:
        below = config.global_batch - config.global_batch % layout.dp
        message = (
            f"{config.global_batch} is not a multiple of the {layout.dp} data-parallel ranks, as --compat {config.compat} needs"
        )
        return [Problem("--global_batch", message, f"Nearest sizes that work: {below} and {below + layout.dp}.")]
    share = config.global_batch // layout.dp
    if config.micro_batch and share % config.micro_batch:
        message = f"{config.micro_batch} does not divide the {share} documents of a rank, as --compat {config.compat} needs"
        fitting = ", ".join(str(size) for size in range(1, share + 1) if share % size == 0)
        return [Problem("--micro_batch", message, f"Sizes that work: {fitting}.")]
    return []


def _options(inputs: LayoutInputs, layout: Layout, nproc: int) -> list[_Option]:
    """Return the ways to need memory that a person has left open, the one that needs most first.

    Only GPUs choose what to recompute. Weights are gathered for each pass only where nothing else fits: messages take time.
    """
    asked, on_gpu = inputs.config.recompute, inputs.devices.kind == "cuda"
    kinds = (asked,) if asked != "auto" else KINDS if on_gpu else ("none",)
    divides = layout.dp > 1 and layout.pp == 1 and inputs.adapter is None  # a pipeline keeps weights over its micro-batches
    gathers = (False, True) if on_gpu and divides else (False,)
    tokens = partial(_largest_stream, inputs, layout.dp)
    return [_Option(layout, nproc, Way(kind, reshard), tokens) for reshard in gathers for kind in kinds]


def _fastest(inputs: LayoutInputs, layout: Layout, nproc: int) -> LayoutChoice:
    """Return the fastest of the ways that fit, with the largest micro-batch each; that which needs least where none fits."""
    choices = [_largest_micro_batch(inputs, option) for option in _options(inputs, layout, nproc)]
    fitting = [choice for choice in choices if _fits(inputs, choice)]
    kept = [choice for choice in fitting if not choice.work.reshard]
    return max(kept or fitting or choices[-1:], key=lambda choice: _speed(inputs, choice))


def _speed(inputs: LayoutInputs, choice: LayoutChoice) -> float:
    cost = recompute_cost(inputs.model, choice.work.recompute, frozen=inputs.adapter is not None)
    return relative_speed(choice.stream_tokens, cost)


def _largest_micro_batch(inputs: LayoutInputs, option: _Option) -> LayoutChoice:
    """Take the micro-batch that was asked for, or the largest power of two that fits and is of use.

    A pipeline gets at least four micro-batches a stage where the global batch has them, so that it is rarely idle.
    """
    config, layout = inputs.config, option.layout
    if config.micro_batch:
        return _with_micro_batch(inputs, option, config.micro_batch)
    share = inputs.global_batch // layout.dp
    most = min(_LARGEST_MICRO_BATCH, share // (4 * layout.pp) if layout.pp > 1 else share)
    chosen = _with_micro_batch(inputs, option, 1)
    size = 2
    while size <= most and not (config.rules.deals_in_order and share % size):
        larger = _with_micro_batch(inputs, option, size)
        if not _fits(inputs, larger) or larger.stream_tokens > _ENOUGH_TOKENS[inputs.devices.kind]:
            break
        chosen, size = larger, size * 2
    return chosen


def _fits(inputs: LayoutInputs, choice: LayoutChoice) -> bool:
    return choice.memory.total <= _FITS * inputs.devices.memory_per_rank(choice.nproc_per_node)


def _with_micro_batch(inputs: LayoutInputs, option: _Option, micro_batch: int) -> LayoutChoice:
    layout, largest = option.layout, option.tokens(micro_batch)
    count = micro_batches_per_rank(inputs.global_batch, dp=layout.dp, micro_batch=micro_batch)
    work = workload(inputs.config, inputs.devices, largest, count, precision=inputs.precision, way=option.way)
    model = padded_model(inputs.model, tp=layout.tp, vocab_multiple=inputs.config.rules.vocab_multiple)
    return LayoutChoice(
        layout=layout,
        nproc_per_node=option.nproc_per_node,
        micro_batch=micro_batch,
        num_micro_batches=count,
        stream_tokens=largest,
        work=work,
        memory=estimate_memory(model, layout, work, adapter=inputs.adapter),
    )


def workload(
    config: RunConfig, devices: Devices, stream_tokens: int, num_micro_batches: int, *, precision: str, way: Way
) -> Workload:
    """Return what a rank computes with streams of so many tokens."""
    return Workload(
        stream_tokens=stream_tokens,
        num_micro_batches=num_micro_batches,
        bf16=precision == "bf16",
        recompute=way.recompute,
        device_kind=devices.kind,
        reshard=way.reshard,
        optimizer=config.optimizer,
        torch_for_gpus=devices.torch_for_gpus,
    )


def _largest_stream(inputs: LayoutInputs, dp: int, micro_batch: int) -> int:
    """Return the most tokens of a micro-batch in the sampled batches, at least the longest document's."""
    if (dp, micro_batch) not in inputs.streams:
        loads = (_loads(inputs, batch, dp, micro_batch) for batch in inputs.batches)
        inputs.streams[dp, micro_batch] = max([inputs.longest, *chain.from_iterable(loads)])
    return inputs.streams[dp, micro_batch]


def _loads(inputs: LayoutInputs, batch: np.ndarray, dp: int, micro_batch: int) -> list[int]:
    """Return the tokens of each micro-batch that a global batch is dealt into."""
    if inputs.config.rules.deals_in_order:
        ranks = deal_in_order(len(batch), dp=dp, micro_batch=micro_batch)
    else:
        ranks = deal_to_ranks(batch, dp=dp, micro_batch=micro_batch)
    return [int(batch[part].sum()) for rank in ranks for part in rank]
