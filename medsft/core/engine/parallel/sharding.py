"""Tensor and data parallelism applied to a plain decoder: which parameter lies where, and what is communicated.

    Decoder on the meta device --tensor plan--> DTensors over tp --freeze--> what is not trained has no gradient
        --fully_shard--> over dp too --to_empty--> this rank's shards, with memory

With tensor parallel the residual stream between the projections is split over the tokens (`parallel.tokens`), so the number of
tokens in a stream must be a multiple of tp.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Placement, Replicate, Shard, distribute_tensor

from medsft.core.engine.nn.adapters import Adapter
from medsft.core.engine.nn.dtensor import local_range
from medsft.core.engine.nn.model import Decoder, DecoderLayer
from medsft.core.engine.nn.trained_rows import TokenEmbedding
from medsft.core.engine.parallel.master_weights import freeze
from medsft.core.engine.parallel.mesh import Mesh
from medsft.core.engine.parallel.tokens import gather_tokens, sum_tokens
from medsft.core.models.config import ModelConfig
from medsft.core.planning.layout import stage_layers

BY_ROWS: Mapping[str, Placement] = {"weight": Shard(0), "bias": Shard(0), "lora_B.weight": Shard(0)}
"""A projection whose outputs are divided (column-parallel), and what of an adapter goes with them."""
BY_COLUMNS: Mapping[str, Placement] = {"weight": Shard(1), "lora_A.weight": Shard(1)}
"""A projection whose inputs are divided (row-parallel): what it computes on each rank is a part of a sum."""


def build_stage(
    config: ModelConfig,
    mesh: Mesh,
    *,
    compute_dtype: torch.dtype,
    trainable: Collection[str],
    recompute: str = "none",
    decoder_class: type[Decoder] = Decoder,
    adapter: Adapter | None = None,
    reshard: bool = False,
    master_dtype: torch.dtype = torch.float32,
) -> Decoder:
    """Return this rank's part of the model, sharded and allocated but not filled.

    The weights named in `trainable` are in `master_dtype`, the others frozen in `compute_dtype`, or as `adapter` says.
    `decoder_class` is the class of a stage: a pipeline schedule calls its stages in its own way. `reshard` as in
    `shard_data_parallel`.
    """
    layout = mesh.layout
    with torch.device("meta"):
        decoder = decoder_class(
            config,
            layers=stage_layers(config, layout.pp)[mesh.pp_rank],
            first=mesh.is_first_stage,
            last=mesh.is_last_stage,
            adapter=adapter,
        )
    for layer in decoder.model.layers.values():
        assert isinstance(layer, DecoderLayer)
        layer.recompute = recompute
    if layout.tp > 1:
        shard_tensors(decoder, mesh.devices["tp"])
    kept = adapter.base_precision if adapter else None
    freeze(decoder, trainable, compute_dtype=compute_dtype, base_precision=kept, master_dtype=master_dtype)
    if layout.dp > 1 and adapter is not None:
        shard_frozen_layers(decoder, mesh.devices["dp"])
    elif layout.dp > 1:
        shard_data_parallel(decoder, mesh.devices["dp"], compute_dtype=compute_dtype, reshard=reshard)
    decoder.to_empty(device=mesh.device)
    return decoder


def shard_tensors(decoder: Decoder, tp_mesh: DeviceMesh) -> None:
    """Split projections by heads and features, the embedding and the output projection by rows of the vocabulary."""
    trunk = decoder.model
    for layer in trunk.layers.values():
        assert isinstance(layer, DecoderLayer)
        _shard_layer(layer, tp_mesh)
    if trunk.embed_tokens is not None:
        trunk.embed_tokens = ShardedEmbedding(trunk.embed_tokens, tp_mesh)
    if trunk.norm is not None:
        divide(trunk.norm, tp_mesh, {})
    if decoder.lm_head is not None:
        divide(decoder.lm_head, tp_mesh, BY_ROWS)  # the loss takes the weight itself, see `head_rows`


def _shard_layer(layer: DecoderLayer, tp_mesh: DeviceMesh) -> None:
    """Divide the weights of a layer, and have its parts meet all tokens between norms that meet this rank's alone."""
    group = tp_mesh.get_group()

    def gather(_part: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return gather_tokens(inputs[0], group), *inputs[1:]

    def add_up(_projection: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return sum_tokens(output, group)

    attention, mlp = layer.self_attn, layer.mlp
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
        divide(projection, tp_mesh, BY_ROWS)
    for projection in (attention.o_proj, mlp.down_proj):
        divide(projection, tp_mesh, BY_COLUMNS)
        projection.register_forward_hook(add_up)
    for part in (attention, mlp):
        part.register_forward_pre_hook(gather)
    # Norms of tokens meet this rank's tokens, norms of heads this rank's heads: either way the gradient is a part of a sum.
    for norm in (layer.input_layernorm, layer.post_attention_layernorm, attention.q_norm, attention.k_norm):
        if norm is not None:
            divide(norm, tp_mesh, {})


def divide(module: nn.Module, tp_mesh: DeviceMesh, placements: Mapping[str, Placement]) -> None:
    """Divide the parameters of a module as `placements` says by their names; the others are whole on each rank."""
    for name, parameter in list(module.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        divided = distribute_tensor(parameter.detach(), tp_mesh, [placements.get(name, Replicate())])
        setattr(module.get_submodule(owner), leaf, nn.Parameter(divided))


class ShardedEmbedding(TokenEmbedding):
    """An embedding whose rows are divided over the tensor-parallel ranks, as Megatron's.

    Each rank looks up the tokens that it has rows of; the sum over the ranks is divided over the tokens. Unlike DTensor's own
    embedding, its gradient is never larger than this rank's rows.
    """

    def __init__(self, whole: TokenEmbedding, tp_mesh: DeviceMesh) -> None:
        rows = distribute_tensor(whole.weight, tp_mesh, [Shard(0)])
        super().__init__(whole.num_embeddings, whole.embedding_dim, whole.rows, _weight=rows)
        if whole.trained_rows is not None:
            self.trained_rows = nn.Parameter(distribute_tensor(whole.trained_rows.detach(), tp_mesh, [Replicate()]))
        self.tp_mesh = tp_mesh

    def forward(self, ids: Tensor) -> Tensor:
        """Return this rank's tokens [T / tp, hidden] of `ids` [T], which all ranks have."""
        (first, *_), (count, *_) = local_range(self.weight)
        own = ids - first
        here = (own >= 0) & (own < count)
        hidden = self.look_up(own.where(here, 0)) * here[:, None]
        return sum_tokens(hidden, self.tp_mesh.get_group())


def shard_data_parallel(decoder: Decoder, dp_mesh: DeviceMesh, *, compute_dtype: torch.dtype, reshard: bool = False) -> None:
    """Divide masters, gradients and optimizer state over the data-parallel ranks, layer by layer.

    Weights are gathered once an iteration, in the computing format, and kept over its micro-batches: gathering them again for
    each costs time. With `reshard` that is done all the same, for the forward and again for the backward pass, where memory for
    all of them at once is what lacks; gradients are still reduced once an iteration, so every number stays the same.
    """
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in decoder.model.layers.values():
        fully_shard(layer, mesh=dp_mesh, mp_policy=policy, reshard_after_forward=reshard)
    decoder.register_forward_hook(_require_gradient)  # before FSDP's own hook, which looks at what it returns
    fully_shard(decoder, mesh=dp_mesh, mp_policy=policy, reshard_after_forward=False)


def shard_frozen_layers(decoder: Decoder, dp_mesh: DeviceMesh) -> None:
    """Divide the frozen weights of the layers of a model with an adapter over the data-parallel ranks.

    They are gathered in the format that they are kept in, a layer at a time, for the forward and again for the backward pass:
    the memory for all of them at once is what an adapter is to save. What is trained is small, and all of it is on each rank
    (`MasterWeights.copied_over_dp`); so are the tables of tokens, which lookup and loss need whole anyway.
    """
    with _shards_without_gradient():
        for layer in decoder.model.layers.values():
            trained = {parameter for parameter in layer.parameters() if parameter.requires_grad}
            fully_shard(layer, mesh=dp_mesh, reshard_after_forward=True, ignored_params=trained)
        fully_shard(decoder, mesh=dp_mesh, ignored_params=set(decoder.parameters()))


@contextmanager
def _shards_without_gradient() -> Iterator[None]:
    """Let the shards that FSDP makes of frozen weights have no gradient from the beginning.

    Before torch 2.13 each is made with one, which is then taken away: that cannot be for integers, as the codes of nf4 are.
    """
    if torch.__version__ >= "2.13":
        yield
        return
    from torch.distributed.fsdp._fully_shard import _fsdp_param

    theirs = _fsdp_param.nn
    made = SimpleNamespace(Module=nn.Module, Parameter=partial(nn.Parameter, requires_grad=False))
    _fsdp_param.nn = made  # type: ignore[assignment]
    try:
        yield
    finally:
        _fsdp_param.nn = theirs


def _require_gradient(_decoder: nn.Module, _inputs: tuple[object, ...], output: Tensor) -> Tensor:
    """Let a gradient come back to the output also where all layers are frozen and the output projection alone is trained.

    FSDP reduces the gradients of the decoder's own unit when the gradient of its output has come, and otherwise never.
    """
    return output if output.requires_grad or not torch.is_grad_enabled() else output.requires_grad_()
