"""Write a Megatron-LLM checkpoint at any layout, in the spelling of the original's trainer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medsft.core.engine.formats.megatron import layout
from medsft.core.engine.formats.megatron.arguments import build_args, check_expressible
from medsft.core.engine.formats.megatron.layout import Chunk, check_divisible, chunks, hf_names, padded_rows, place, shard_shape
from medsft.core.engine.formats.megatron.optimizer import OptimizerState, optimizer_content, states_of
from medsft.core.engine.formats.megatron.reserved import ReservedFile
from medsft.core.engine.formats.source import WeightSource
from medsft.core.engine.formats.vocabulary import BLOCK_ROWS, NewRows, ResizedSource
from medsft.core.files import new_folder, write_atomically
from medsft.core.models.config import ModelConfig, to_hf_config
from medsft.core.models.megatron import SIDECAR, TRACKER, layout_in_name, rank_folder, saved_folder
from medsft.errors import MismatchError

Files = dict[tuple[int, int], ReservedFile]
"""(tensor rank, pipeline stage) -> its file."""


def write_megatron(
    root: Path,
    source: WeightSource,
    *,
    tp: int,
    pp: int,
    dtype: torch.dtype,
    iteration: int | None = None,
    true_vocab_size: int | None = None,
    vocab_divisible_by: int = 128,
    new_rows: NewRows = "mean",
    with_tokenizer_model: bool = False,
    training_args: Mapping[str, Any] | None = None,
    optimizer: OptimizerState | None = None,
) -> Path:
    """Write the weights of `source` below `root` and return the folder: `iter_NNNNNNN`, or `release` without `iteration`.

    `true_vocab_size` is the tokenizer's size (default: the rows of `source`). The tables are cut or lengthened to the next
    multiple of `vocab_divisible_by * tp`; see `ResizedSource` for what new rows hold. `training_args` are carried into the
    saved arguments, where they describe neither model nor layout; `with_tokenizer_model` lets them name the `tokenizer.model`
    that the caller puts into `root`. With `optimizer`, the original can go on training.
    At most one tensor of a layer is in memory. The folder appears when it is complete, and the tracker names it last.
    Raises `MismatchError` before anything is written when the model cannot be cut so, or Megatron-LLM cannot run it.
    """
    check_expressible(source.config)
    check_divisible(source.config, tp, pp)
    named = layout_in_name(root)
    if named and named != (tp, pp):
        raise MismatchError(
            f"{root}: the name says tp={named[0]} pp={named[1]}, but tp={tp} pp={pp} is to be written.",
            hint="Such a name has to be true, or the folder is refused when it is read.",
        )
    tokens = source.config.vocab_size if true_vocab_size is None else true_vocab_size
    padded = ResizedSource(source, tokens, rows=padded_rows(tokens, vocab_divisible_by, tp), new_rows=new_rows)
    folder = saved_folder(root, iteration)
    with new_folder(folder) as aside:
        files: Files = {}
        for chunk in chunks(source.config.num_layers, pp):
            for tp_rank in range(tp):
                args = build_args(
                    padded.config,
                    tp=tp,
                    pp=pp,
                    rank=tp_rank + tp * chunk.stage,
                    dtype=dtype,
                    iteration=iteration,
                    vocab_divisible_by=vocab_divisible_by,
                    tokenizer_model=str(root.absolute() / "tokenizer.model") if with_tokenizer_model else None,
                    carried=training_args or {},
                )
                path = aside / rank_folder(tp_rank, chunk.stage, pp) / "model_optim_rng.pt"
                files[tp_rank, chunk.stage] = _reserve(path, chunk, args, padded.config, dtype, optimizer)
        for chunk in chunks(source.config.num_layers, pp):
            for layer, key in _tensors(chunk, source.config.num_layers):
                _fill(files, chunk, layer, key, padded, dtype, optimizer, tp)
        for file in files.values():
            file.close()
        sidecar = {"config": to_hf_config(source.config.with_vocab(tokens), dtype=str(dtype).removeprefix("torch."))}
        (aside / SIDECAR).write_text(json.dumps(sidecar, indent=2), encoding="utf-8")
    try:
        write_atomically(root / TRACKER, "release" if iteration is None else str(iteration))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def _tensors(chunk: Chunk, num_layers: int) -> Iterator[tuple[int | None, str]]:
    """Yield (global layer or None, key) of what a stage holds, in the order of its file."""
    if chunk.layers.start == 0:
        yield None, layout.EMBEDDING
    for layer in chunk.layers:
        for key in layout.LAYER_KEYS:
            yield layer, key
    if chunk.layers.stop == num_layers:
        yield None, layout.FINAL_NORM
        yield None, layout.LM_HEAD


def _reserve(
    path: Path, chunk: Chunk, args: Any, config: ModelConfig, dtype: torch.dtype, optimizer: OptimizerState | None
) -> ReservedFile:
    """Lay out the file of one rank."""
    tp = args.tensor_model_parallel_size
    tensors: dict[str, Tensor] = {}
    language: dict[str, Any] = {}
    for layer, key in _tensors(chunk, config.num_layers):
        tensor = torch.empty(shard_shape(key, config, tp, config.vocab_size), dtype=dtype)
        tensors[_slot("weight", layer, key)] = tensor
        if key == layout.EMBEDDING:
            language["embedding"] = {"word_embeddings": {"weight": tensor}}
        elif key == layout.LM_HEAD:
            language["lm_head"] = tensor
        else:
            spelled = key if layer is None else f"layers.{layer - chunk.layers.start}.{key}"
            language.setdefault("encoder", {})[spelled] = tensor
    content: dict[str, Any] = {
        "args": args,
        "checkpoint_version": 3.0,
        "iteration": args.iteration,
        "model": {"language_model": language},
    }
    if optimizer is not None:
        weights = {key: tensors[_slot("weight", *key)] for key in _tensors(chunk, config.num_layers)}
        more, states = optimizer_content(optimizer, weights, args, tp_rank=args.rank % tp, stage=chunk.stage)
        content |= more
        tensors |= {_slot(state, layer, key): tensor for (state, layer, key), tensor in states.items()}
    path.parent.mkdir(parents=True)
    return ReservedFile(path, content, tensors)


def _fill(
    files: Files,
    chunk: Chunk,
    layer: int | None,
    key: str,
    padded: ResizedSource,
    dtype: torch.dtype,
    optimizer: OptimizerState | None,
    tp: int,
) -> None:
    """Write one tensor, and its optimizer states, into the files of all tensor ranks."""
    sources: dict[str, tuple[WeightSource, torch.dtype]] = {"weight": (padded, dtype)}
    if optimizer is not None:
        for state in states_of(dtype):
            states = ResizedSource(optimizer.sources[state], padded.config.vocab_size, new_rows="copy_last")
            sources[state] = (states, torch.float32)
    for kind, (source, to) in sources.items():
        if key in (layout.EMBEDDING, layout.LM_HEAD):
            parts = _table_parts(source, key, tp)
        else:
            parts = _layer_parts(source, layer, key, tp)
        for tp_rank, part in parts:
            files[tp_rank, chunk.stage].append(_slot(kind, layer, key), part.to(to))


def _table_parts(source: WeightSource, key: str, tp: int) -> Iterator[tuple[int, Tensor]]:
    """Yield (tensor rank, rows) of a vocabulary table in blocks. A tied model's lm_head is a copy of its embedding."""
    tied = source.config.tie_embeddings and key == layout.LM_HEAD
    (name,) = hf_names(None, layout.EMBEDDING if tied else key)
    per_rank = source.config.vocab_size // tp
    for tp_rank in range(tp):
        for start in range(tp_rank * per_rank, (tp_rank + 1) * per_rank, BLOCK_ROWS):
            yield tp_rank, source.read(name, (slice(start, min(start + BLOCK_ROWS, (tp_rank + 1) * per_rank)),))


def _layer_parts(source: WeightSource, layer: int | None, key: str, tp: int) -> Iterator[tuple[int, Tensor]]:
    """Yield (tensor rank, its whole tensor), put together from the Hugging Face weights it holds."""
    config = source.config
    pieces = [(place(name, config, tp, config.vocab_size), source.read(name)) for name in hf_names(layer, key)]
    for tp_rank in range(tp):
        shard = torch.empty(shard_shape(key, config, tp, config.vocab_size), dtype=pieces[0][1].dtype)
        for placement, weight in pieces:
            mine = placement.rank == tp_rank
            if placement.axis is None:
                shard.copy_(weight)
            elif placement.axis == 0:
                shard[placement.local[mine]] = weight[mine]
            else:
                shard[:, placement.local[mine]] = weight[:, mine]
        yield tp_rank, shard


def _slot(kind: str, layer: int | None, key: str) -> str:
    return f"{kind} {layer} {key}"
