"""Where each rank stands: the pipeline, data and tensor sizes. Pure arithmetic; the mesh itself is built in the engine."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from medsft.core.models.config import ModelConfig
from medsft.core.units import counted
from medsft.errors import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Sizes of the three kinds of parallelism. Tensor ranks are neighbors, then data, then pipeline.

    rank = (pp_rank * dp + dp_rank) * tp + tp_rank, the order of Megatron.
    """

    pp: int = 1
    dp: int = 1
    tp: int = 1

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.pp * self.dp * self.tp

    def coordinates(self, rank: int) -> tuple[int, int, int]:
        """Return (pp_rank, dp_rank, tp_rank)."""
        rest, tp_rank = divmod(rank, self.tp)
        pp_rank, dp_rank = divmod(rest, self.dp)
        return pp_rank, dp_rank, tp_rank

    def rank(self, pp_rank: int, dp_rank: int, tp_rank: int) -> int:
        """Return the rank at these coordinates."""
        return (pp_rank * self.dp + dp_rank) * self.tp + tp_rank

    def __str__(self) -> str:
        return f"pp {self.pp} x dp {self.dp} x tp {self.tp}"


def padded_vocab(vocab_size: int, *, tp: int, divisible_by: int = 1) -> int:
    """Return the smallest multiple of `divisible_by * tp` that holds the vocabulary."""
    unit = divisible_by * tp
    return -(-vocab_size // unit) * unit


def padded_model(model: ModelConfig, *, tp: int, vocab_multiple: int | None) -> ModelConfig:
    """Return the sizes in training: the vocabulary padded so that every valid tensor-parallel size divides it.

    That is the same for every size, so that a checkpoint can be read at another. With `vocab_multiple`, to a multiple of
    `vocab_multiple * tp` instead.
    """
    if vocab_multiple is not None:
        return model.with_vocab(padded_vocab(model.vocab_size, tp=tp, divisible_by=vocab_multiple))
    return model.with_vocab(padded_vocab(model.vocab_size, tp=math.lcm(*valid_tensor_sizes(model))))


def stage_layers(model: ModelConfig, pp: int) -> list[range]:
    """Spread the layers over the stages so that the slowest stage has least to do.

    The output projection weighs as many layers as it has parameters per token (the embedding look-up costs next to nothing, but
    its rows cost memory: half of that is charged to the first stage).
    """
    if pp == 1:
        return [range(model.num_layers)]
    per_layer = model.layer_parameters()
    head = model.vocab_size * model.hidden_size / per_layer
    extra = [0.0] * pp
    extra[0] += head / 4
    extra[-1] += head / 2
    counts = [1] * pp  # a stage without a layer has nothing to overlap communication with
    for _ in range(model.num_layers - pp):
        lightest = min(range(pp), key=lambda stage: (counts[stage] + extra[stage], stage))
        counts[lightest] += 1
    stages, start = [], 0
    for count in counts:
        stages.append(range(start, start + count))
        start += count
    return stages


def stage_shapes(model: ModelConfig, pp: int, stage: int) -> dict[str, tuple[int, ...]]:
    """Return name and full shape of each weight of a pipeline stage; a tied embedding is on the first and on the last stage."""
    first, last = stage == 0, stage == pp - 1
    layers = set(stage_layers(model, pp)[stage])
    ends = {
        "model.embed_tokens.weight": first or (last and model.tie_embeddings),
        "model.norm.weight": last,
        "lm_head.weight": last,
    }
    return {
        name: shape
        for name, shape in model.parameter_shapes()
        if (ends[name] if name in ends else int(name.split(".")[2]) in layers)
    }


def check_layout(model: ModelConfig, layout: Layout, *, global_batch: int) -> list[Problem]:
    """Return why these sizes cannot work for this model, each with the nearest that can."""
    problems = []
    valid_tp = valid_tensor_sizes(model)
    if layout.tp not in valid_tp:
        problems.append(
            Problem(
                "--tp",
                f"{layout.tp} does not divide the model's {model.num_heads} heads, {model.num_kv_heads} key/value heads "
                f"and {model.intermediate_size} feed-forward features",
                f"Nearest sizes that work: {_nearest(layout.tp, valid_tp)}.",
            )
        )
    if layout.pp > model.num_layers:
        problems.append(
            Problem(
                "--pp",
                f"{layout.pp} stages for {model.num_layers} layers",
                f"Nearest size that works: {model.num_layers}.",
            )
        )
    if layout.dp > global_batch:
        problems.append(
            Problem(
                "--nproc_per_node",
                f"{layout.dp} data-parallel ranks for a global batch of {global_batch} documents",
                f"Use at most {global_batch * layout.tp * layout.pp} processes, or a larger --global_batch.",
            )
        )
    return problems


def check_processes(tp: int, pp: int, *, nproc_per_node: int, nodes: int) -> list[Problem]:
    """Return why the processes cannot be divided into these sizes, each with the nearest numbers that can."""
    world, whole = nproc_per_node * nodes, tp * pp
    if world % whole:
        fitting = [nproc for nproc in range(1, nproc_per_node + whole + 1) if nproc * nodes % whole == 0]
        return [
            Problem(
                "--nproc_per_node",
                f"{world} processes ({nproc_per_node} on each of {nodes} nodes) cannot be divided into tp {tp} x pp {pp}",
                f"Nearest numbers that work: {_nearest(nproc_per_node, fitting)}; or use other --tp and --pp.",
            )
        ]
    if nproc_per_node % tp:
        dividing = [size for size in range(1, nproc_per_node + 1) if nproc_per_node % size == 0]
        return [
            Problem(
                "--tp",
                f"{tp} does not divide the {nproc_per_node} processes of a node, and ranks of one tensor group share a node",
                f"Nearest sizes that work: {_nearest(tp, dividing)}.",
            )
        ]
    return []


def check_gpus(tp: int, pp: int, *, nproc_per_node: int, nodes: int, gpus: int) -> list[Problem]:
    """Return why nodes with so many `gpus` each have not enough of them: each process needs one of its own."""
    of_a_node = counted(gpus, "GPU")
    if nproc_per_node > gpus:
        return [
            Problem(
                "--nproc_per_node",
                f"{nproc_per_node} processes on a node, and this one has {of_a_node}, of which each process needs one",
                f"Use at most {gpus} on each node, and more --nodes for more. Of slices of a GPU (MIG) a node can use one.",
            )
        ]
    if tp * pp > nproc_per_node * nodes:
        there = f"{nproc_per_node * nodes} (--nproc_per_node {nproc_per_node} on {counted(nodes, 'node')} with {of_a_node})"
        return [
            Problem(
                "--tp" if tp > 1 else "--pp",
                f"tp {tp} x pp {pp} needs {tp * pp} processes, and there are {there}",
                "Use smaller --tp and --pp, which need not be those of the base model's folder, or more --nodes.",
            )
        ]
    return []


def valid_tensor_sizes(model: ModelConfig) -> list[int]:
    """Return every tensor-parallel size the model's heads and features divide by."""
    return [
        tp
        for tp in range(1, model.num_kv_heads + 1)
        if model.num_heads % tp == 0 and model.num_kv_heads % tp == 0 and model.intermediate_size % tp == 0
    ]


def _nearest(wanted: int, valid: list[int]) -> str:
    below = [v for v in valid if v < wanted][-1:]
    above = [v for v in valid if v > wanted][:1]
    return " and ".join(str(v) for v in below + above)


def smaller_first(world: int) -> Iterator[tuple[int, int]]:
    """Yield (tp, pp) whose product divides `world`, least splitting first, tensor before pipeline at equal product."""
    pairs = [(tp, pp) for tp in range(1, world + 1) for pp in range(1, world // tp + 1) if world % (tp * pp) == 0]
    yield from sorted(pairs, key=lambda pair: (pair[0] * pair[1], pair[1]))


def bubble_share(pp: int, num_micro_batches: int) -> float:
    """Return the share of time a stage waits in a 1F1B schedule: (pp - 1) / (micro-batches + pp - 1)."""
    return (pp - 1) / (num_micro_batches + pp - 1)
