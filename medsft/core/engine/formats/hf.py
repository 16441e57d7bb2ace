"""Hugging Face folders: read safetensors and pytorch_model.bin, write sharded safetensors."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from medsft.core.engine.formats.safetensors_writer import SAFETENSORS_DTYPES, write_header, write_tensor
from medsft.core.engine.formats.source import Slices, WeightSource, sha256_of_files
from medsft.core.files import new_folder
from medsft.core.models.config import ModelConfig, end_token_ids, read_hf_config, to_hf_config
from medsft.core.models.tensors import EMBEDDING, OUTPUT, check_complete
from medsft.core.models.weight_files import TIED_HINT, find_weight_files, look_at_weights, tied_but_different
from medsft.errors import MismatchError


def open_hf(folder: Path) -> WeightSource:
    """Open the weights of a Hugging Face folder; safetensors are preferred to pytorch_model.bin.

    Raises `MismatchError` when files are missing or damaged, or do not fit `config.json`.
    """
    config = read_hf_config(folder)
    files = find_weight_files(folder)
    look_at_weights(files, config, where=str(folder))
    return _SafetensorsSource(config, files) if files[0].suffix == ".safetensors" else _TorchSource(config, files)


def write_hf(
    folder: Path,
    config: ModelConfig,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    dtype: torch.dtype,
    max_shard_bytes: int = 5 * 10**9,
    eos_token_ids: Sequence[int] | None = None,
) -> None:
    """Write `tensors` (Hugging Face name, full tensor) as a folder that transformers loads.

    Tensors are taken one after the other, in any order, and one at a time is in memory. The folder appears under its name only
    when it is complete; it must not exist before. `eos_token_ids` end a generation (default: the one of `config`).
    Raises `MismatchError` when something else has the name, or the tensors are not those of `config`.
    """
    with new_folder(folder) as aside:
        fill_hf(aside, config, tensors, dtype=dtype, max_shard_bytes=max_shard_bytes, eos_token_ids=eos_token_ids, name=folder)


def fill_hf(
    folder: Path,
    config: ModelConfig,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    dtype: torch.dtype,
    max_shard_bytes: int = 5 * 10**9,
    eos_token_ids: Sequence[int] | None = None,
    name: Path | None = None,
) -> None:
    """Do what `write_hf` does in a folder that is there, and will be called `name`; the caller makes it durable."""
    _write_shards(folder, config, tensors, dtype, max_shard_bytes, where=str(name or folder))
    write_json(folder / "config.json", to_hf_config(config, dtype=str(dtype).removeprefix("torch.")))
    write_json(folder / "generation_config.json", generation_config(config, eos_token_ids))


class _SafetensorsSource:
    """Weights in safetensors files.

    They are memory-mapped one weight at a time: pages that were read count as the process's memory for as long as the mapping
    lasts, and all of them together would be the whole model.
    """

    def __init__(self, config: ModelConfig, files: Sequence[Path]) -> None:
        self.config = config
        self._files = files
        self._where: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        wanted = set(self.names())
        for path in files:
            with _open_safetensors(path) as file:
                for name in wanted.intersection(file.keys()):
                    stored = file.get_slice(name)
                    self._where[name] = path
                    self._shapes[name] = tuple(stored.get_shape())
                    self._dtypes[name] = SAFETENSORS_DTYPES[stored.get_dtype()]

    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.config.parameter_shapes())

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        return self._dtypes[name]

    def read(self, name: str, slices: Slices | None = None) -> Tensor:
        with _open_safetensors(self._where[name]) as file:
            return file.get_tensor(name) if slices is None else file.get_slice(name)[slices]

    def file(self, name: str) -> Path:
        return self._where[name]

    def fingerprint(self) -> str:
        return sha256_of_files(self._files)


def _open_safetensors(path: Path) -> Any:
    """Open a file to read single tensors from it; used with `with`. Raises `MismatchError` where it is none."""
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise MismatchError(f"{path}: cannot be read: {error}", hint="Copy the file again.") from None


def open_tensors(path: Path) -> Callable[[str], Tensor]:
    """Return what reads a tensor of one file of safetensors or `torch.save` by its name.

    Raises `MismatchError`, as what it returns does, for a file that cannot be read.
    """
    if path.suffix != ".safetensors":
        loaded = _load_pickle(path)
        return lambda name: loaded[name].clone()

    def read(name: str) -> Tensor:
        with _open_safetensors(path) as file:
            return file.get_tensor(name)

    return read


class _TorchSource:
    """Weights in files of `torch.save`, memory-mapped and read without running code from them."""

    def __init__(self, config: ModelConfig, files: Sequence[Path]) -> None:
        self.config = config
        self._files = files
        self._tensors: dict[str, Tensor] = {}
        self._where: dict[str, Path] = {}
        for path in files:
            loaded = _load_pickle(path)
            self._tensors |= loaded
            self._where |= dict.fromkeys(loaded, path)
        if (
            config.tie_embeddings
            and OUTPUT in self._tensors
            and not torch.equal(self._tensors[OUTPUT], self._tensors[EMBEDDING])
        ):
            raise MismatchError(tied_but_different(str(files[0].parent)), hint=TIED_HINT)

    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.config.parameter_shapes())

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype

    def read(self, name: str, slices: Slices | None = None) -> Tensor:
        return self._tensors[name][slices or ...].clone()

    def file(self, name: str) -> Path:
        return self._where[name]

    def fingerprint(self) -> str:
        return sha256_of_files(self._files)


def _load_pickle(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file of `torch.save`, memory-mapped."""
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
        raise MismatchError(f"{path}: cannot be read: {error}", hint="Copy the file again.") from None


def _write_shards(
    folder: Path,
    config: ModelConfig,
    tensors: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype,
    max_shard_bytes: int,
    *,
    where: str,
) -> None:
    """Write the safetensors files, and the index where there are several."""
    shapes = dict(config.parameter_shapes())
    shards = _plan_shards(shapes, dtype.itemsize, max_shard_bytes)
    offsets: dict[str, tuple[int, int]] = {}
    weight_map: dict[str, str] = {}
    with ExitStack() as stack:
        for number, names in enumerate(shards, start=1):
            one = len(shards) == 1
            file_name = "model.safetensors" if one else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            file = stack.enter_context((folder / file_name).open("wb", buffering=0))
            starts = write_header(file, {name: shapes[name] for name in names}, dtype)
            offsets |= {name: (file.fileno(), start) for name, start in starts.items()}
            weight_map |= dict.fromkeys(names, file_name)
        found: dict[str, tuple[int, ...]] = {}
        for name, tensor in tensors:
            found[name] = tuple(tensor.shape)
            if found[name] == shapes.get(name):
                write_tensor(*offsets[name], tensor.detach().to("cpu", dtype))
        check_complete(config, found, where=where)
    if len(shards) > 1:
        total_bytes = config.num_parameters() * dtype.itemsize
        write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total_bytes}, "weight_map": weight_map})


def _plan_shards(shapes: Mapping[str, tuple[int, ...]], itemsize: int, max_shard_bytes: int) -> list[list[str]]:
    """Group names in order, so that each group has at most `max_shard_bytes` (or one tensor)."""
    shards: list[list[str]] = []
    size = max_shard_bytes + 1
    for name, shape in shapes.items():
        stored = math.prod(shape) * itemsize
        if size + stored > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += stored
    return shards


def generation_config(config: ModelConfig, eos_token_ids: Sequence[int] | None) -> dict[str, Any]:
    """Return the `generation_config.json` of a model; `eos_token_ids` end a generation (default: those of `config`)."""
    eos: int | list[int] | None = list(eos_token_ids) if eos_token_ids else end_token_ids(config)
    return {"bos_token_id": config.bos_token_id, "eos_token_id": eos, "pad_token_id": config.pad_token_id}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file as people read it."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
