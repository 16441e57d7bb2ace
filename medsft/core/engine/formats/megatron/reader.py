"""Read a Megatron-LLM checkpoint folder of any layout under Hugging Face names."""

from __future__ import annotations

import argparse
import codecs
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medsft.core.engine.formats.megatron.layout import EMBEDDING, LM_HEAD, Placement, chunks, place, shard_shape
from medsft.core.engine.formats.source import Slices, sha256_of_files
from medsft.core.models import megatron, pickles
from medsft.core.models.config import ModelConfig
from medsft.core.models.megatron import MegatronFolder
from medsft.core.models.tensors import listed
from medsft.errors import MismatchError

_GLOBAL_IN_ERROR = re.compile(r"GLOBAL ([\w.]+)")
Shards = dict[tuple[int | None, str], tuple[Tensor, ...]]
"""(global layer or None, key in the trainer's spelling) -> the tensor of each tensor rank."""


def open_megatron(
    root: Path,
    iteration: int | None = None,
    *,
    true_vocab_size: int | None = None,
    legacy_rotary: bool = False,
    norm_eps: float | None = None,
    rope_theta: float | None = None,
    rope_scaling_factor: float | None = None,
) -> MegatronSource:
    """Open one iteration of a Megatron-LLM checkpoint; the files are memory-mapped and nothing in them is executed.

    `iteration` None takes the one that the tracker names, 0 takes `release`. `true_vocab_size` cuts the padding rows off the
    embedding and lm_head. `legacy_rotary` is for conversions made before the original interleaved the query and key rows,
    which no mark in the file tells apart. The constants win over what the files say. Look at `warnings` of what is returned.
    Raises `MismatchError` as `megatron_folder.open_folder` does, and for tensors that are missing or of another shape.
    """
    folder = megatron.open_folder(
        root, iteration, norm_eps=norm_eps, rope_theta=rope_theta, rope_scaling_factor=rope_scaling_factor
    )
    config = folder.config
    if true_vocab_size is not None:
        if true_vocab_size > folder.padded_vocab_size:
            raise MismatchError(f"{root}: the table has {folder.padded_vocab_size} rows, fewer than {true_vocab_size}.")
        config = config.with_vocab(true_vocab_size)
    return MegatronSource(folder, config, _read_shards(folder), legacy_rotary=legacy_rotary)


def load_rank_file(path: Path) -> Any:
    """Load a rank file memory-mapped, with stand-ins for Megatron-LLM's classes and nothing else.

    Raises `MismatchError` naming the class or function that is not on the list; nothing is executed then.
    """
    with torch.serialization.safe_globals(_stand_ins()):
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            named = _GLOBAL_IN_ERROR.search(str(error))
            reason = f"it asks for `{named[1]}`" if named else "its pickle is not one of tensors and plain values"
            raise MismatchError(f"{path}: refused; {reason}.", hint="Nothing in it was executed.") from None
        except (RuntimeError, EOFError, OSError, ValueError) as error:
            raise MismatchError(f"{path}: damaged or truncated ({error}).", hint="Copy it again.") from None


class MegatronSource:
    """Weights of a Megatron-LLM folder, merged over its ranks while they are read."""

    def __init__(self, folder: MegatronFolder, config: ModelConfig, shards: Shards, *, legacy_rotary: bool) -> None:
        self.folder = folder
        self.config = config
        self.warnings = folder.warnings
        self._shards = shards
        self._legacy_rotary = legacy_rotary
        self._shapes = dict(config.parameter_shapes())

    def names(self) -> tuple[str, ...]:
        """Return the Hugging Face names, in the order of the forward pass."""
        return tuple(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the full shape of a weight."""
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype that `read` gives."""
        placement = self._place(name)
        return self._shards[placement.layer, placement.key][0].dtype

    def read(self, name: str, slices: Slices | None = None) -> Tensor:
        """Return a weight, or the part of it in `slices`; only the rows and columns asked for are read."""
        placement = self._place(name)
        shards = self._shards[placement.layer, placement.key]
        wanted = [*(slices or ()), *[slice(None)] * (len(self._shapes[name]) - len(slices or ()))]
        if placement.axis is None:
            return shards[0][tuple(wanted)].clone()
        cut, other = wanted[placement.axis], wanted[1 - placement.axis]
        ranks, local = placement.rank[cut], placement.local[cut]
        shape = [0, 0]
        shape[placement.axis] = len(ranks)
        shape[1 - placement.axis] = len(range(self._shapes[name][1 - placement.axis])[other])
        result = torch.empty(shape, dtype=shards[0].dtype)
        for rank in ranks.unique().tolist():
            mine = ranks == rank
            if placement.axis == 0:
                result[mine] = shards[rank][:, other].index_select(0, local[mine])
            else:
                result[:, mine] = shards[rank][other].index_select(1, local[mine])
        return result

    def file(self, name: str) -> Path:
        """Return the folder: a weight lies in the files of several ranks."""
        return self.folder.folder

    def fingerprint(self) -> str:
        """Return the SHA-256 over the contents of all rank files."""
        return sha256_of_files(list(self.folder.files.values()))

    def _place(self, name: str) -> Placement:
        return place(name, self.config, self.folder.tp, self.folder.padded_vocab_size, legacy_rotary=self._legacy_rotary)


def _read_shards(folder: MegatronFolder) -> Shards:
    """Map every rank file and sort its tensors by layer; check that all are there and have the shape they must have."""
    if folder.config.num_layers % folder.pp:
        raise MismatchError(f"{folder.folder}: {folder.config.num_layers} layers cannot lie in {folder.pp} equal stages.")
    models = {key: list(_models(load_rank_file(path), path)) for key, path in sorted(folder.files.items())}
    virtual = len(models[0, 0])
    found: dict[tuple[int | None, str], list[Tensor]] = {}
    for chunk in chunks(folder.config.num_layers, folder.pp, virtual):
        for tp_rank in range(folder.tp):
            path, rank_models = folder.files[tp_rank, chunk.stage], models[tp_rank, chunk.stage]
            if len(rank_models) != virtual:
                raise MismatchError(f"{path}: {len(rank_models)} model chunks, rank 0 has {virtual}.")
            for layer, key, tensor in _tensors(rank_models[chunk.index], path):
                where = None if layer is None else (chunk.layers[layer] if layer < len(chunk.layers) else -1)
                if where == -1:
                    raise MismatchError(f"{path}: layer {layer}, but a stage has only {len(chunk.layers)} layers.")
                found.setdefault((where, key), []).append(tensor)
    return _checked(folder, found)


def _checked(folder: MegatronFolder, found: Mapping[tuple[int | None, str], list[Tensor]]) -> Shards:
    result: Shards = {}
    for name, _ in folder.config.parameter_shapes():
        placement = place(name, folder.config, folder.tp, folder.padded_vocab_size)
        where = (placement.layer, placement.key)
        tensors = found.get(where, [])
        spot = placement.key if placement.layer is None else f"layer {placement.layer} {placement.key}"
        if len(tensors) < folder.tp:
            raise MismatchError(f"{folder.folder}: {spot} is on {len(tensors)} of {folder.tp} tensor ranks.")
        expected = shard_shape(placement.key, folder.config, folder.tp, folder.padded_vocab_size)
        for tensor in tensors:
            if tuple(tensor.shape) != expected:
                raise MismatchError(
                    f"{folder.folder}: {spot} is {list(tensor.shape)} on a rank; the saved arguments say {list(expected)}."
                )
        result[where] = tuple(tensors[: folder.tp])
    _refuse_left_over(folder, [where for where in found if where not in result])
    return result


def _refuse_left_over(folder: MegatronFolder, left: Sequence[tuple[int | None, str]]) -> None:
    """Raise `MismatchError` for tensors that the model has no place for: without them it would be another model."""
    names = [key if layer is None else f"layers.{layer}.{key}" for layer, key in left]
    names = [name for name in names if not name.endswith(("rotary_emb.inv_freq", "_extra_state"))]
    if folder.config.tie_embeddings:
        names = [name for name in names if name != LM_HEAD]
    if names:
        raise MismatchError(
            f"{folder.folder}: a model of the family `{folder.config.family}` has no place for {listed(names)}; without "
            "them it would be another model.",
            hint="llama, llama2, codellama and mistral of Megatron-LLM have none of these.",
        )


def _models(content: Any, path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the `language_model` of each chunk: one in `model`, or one each in `model0`, `model1`, ..."""
    if "model" in content:
        yield megatron.language_model(content, path)
        return
    index = 0
    while f"model{index}" in content:
        yield megatron.language_model({"model": content[f"model{index}"]}, path)
        index += 1


def _tensors(language: Mapping[str, Any], path: Path) -> Iterator[tuple[int | None, str, Tensor]]:
    """Yield (local layer or None, key in the trainer's spelling, tensor) from either spelling."""
    table = megatron.embedding_table(language)
    if table is not None:
        yield None, EMBEDDING, table
    if "lm_head" in language:
        yield None, LM_HEAD, language["lm_head"]
    for key, tensor in (language.get("encoder") or language.get("transformer") or {}).items():
        if key.endswith(".bias"):
            raise MismatchError(f"{path}: `{key}`: models with biases are not supported.")
        match = re.fullmatch(r"layers\.(\d+)\.(.+)", key)
        if match is None:
            yield None, key, tensor
        else:
            yield int(match[1]), re.sub(r"^attention\.", "self_attention.", match[2]), tensor


def _stand_ins() -> list[Any]:
    """List what a rank file may name beyond torch's own list, as (stand-in, name in the pickle)."""
    reconstruct = np.empty(0).__reduce__()[0]
    return [
        argparse.Namespace,
        (pickles.PositionEmbeddingType, "megatron.model.enums.PositionEmbeddingType"),
        (pickles.ModelType, "megatron.model.enums.ModelType"),
        (reconstruct, "numpy.core.multiarray._reconstruct"),
        (reconstruct, "numpy._core.multiarray._reconstruct"),
        (np.ndarray, "numpy.ndarray"),
        (np.dtype, "numpy.dtype"),
        type(np.dtype(np.uint32)),
        (codecs.encode, "_codecs.encode"),
    ]
