"""Hugging Face folders: read safetensors and pytorch_model.bin, write sharded safetensors."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from medsft.core.architecture import ModelConfig, read_hf_config, to_hf_config
from medsft.core.engine.formats.source import Slices, WeightSource, check_complete, sha256_of_files
from medsft.errors import MismatchError

_SAFETENSORS_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


def open_hf(folder: Path) -> WeightSource:
    """Open the weights of a Hugging Face folder; safetensors are preferred to pytorch_model.bin.

    Raises `MismatchError` when files are missing or damaged, or do not fit `config.json`.
    """
    config = read_hf_config(folder)
    for stem, source in (("model.safetensors", _SafetensorsSource), ("pytorch_model.bin", _TorchSource)):
        files = _weight_files(folder, stem)
        if files:
            return source(config, files)
    raise MismatchError(
        f"{folder}: no weights there.", hint="Expected model.safetensors or pytorch_model.bin, single or with its index."
    )


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

    Tensors are taken one after the other, and at most one shard is held in memory. The folder appears under its name only when
    it is complete; it must not exist before. `eos_token_ids` end a generation (default: the one of `config`).
    Raises `MismatchError` when the tensors are not those of `config`.
    """
    if folder.exists():
        raise MismatchError(f"{folder}: exists already.", hint="Choose another folder, or move this one away.")
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    aside.mkdir(parents=True)
    try:
        shapes = _write_shards(aside, tensors, dtype, max_shard_bytes)
        check_complete(config, shapes, where=str(folder))
        _write_json(aside / "config.json", to_hf_config(config, dtype=str(dtype).removeprefix("torch.")))
        _write_json(aside / "generation_config.json", _generation_config(config, eos_token_ids))
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


class _SafetensorsSource:
    """Weights in safetensors files, which are memory-mapped."""

    def __init__(self, config: ModelConfig, files: Sequence[Path]) -> None:
        self.config = config
        self._files = files
        self._where: dict[str, Any] = {}
        for path in files:
            try:
                handle = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise MismatchError(f"{path}: cannot be read: {error}", hint="Copy the file again.") from None
            self._where |= dict.fromkeys(handle.keys(), handle)
        check_complete(config, {name: self.shape(name) for name in self._where}, where=str(files[0].parent))

    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.config.parameter_shapes())

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._where[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        return _SAFETENSORS_DTYPES[self._where[name].get_slice(name).get_dtype()]

    def read(self, name: str, slices: Slices | None = None) -> Tensor:
        if slices is None:
            return self._where[name].get_tensor(name)
        return self._where[name].get_slice(name)[slices]

    def fingerprint(self) -> str:
        return sha256_of_files(self._files)


class _TorchSource:
    """Weights in files of `torch.save`, memory-mapped and read without running code from them."""

    def __init__(self, config: ModelConfig, files: Sequence[Path]) -> None:
        self.config = config
        self._files = files
        self._tensors: dict[str, Tensor] = {}
        for path in files:
            try:
                self._tensors |= torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
                raise MismatchError(f"{path}: cannot be read: {error}", hint="Copy the file again.") from None
        shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        check_complete(config, shapes, where=str(files[0].parent))

    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.config.parameter_shapes())

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype

    def read(self, name: str, slices: Slices | None = None) -> Tensor:
        return self._tensors[name][slices or ...].clone()

    def fingerprint(self) -> str:
        return sha256_of_files(self._files)


def _weight_files(folder: Path, stem: str) -> list[Path]:
    """Return the files of `stem` (`model.safetensors` or `pytorch_model.bin`): one, or those its index names; or none."""
    index = folder / f"{stem}.index.json"
    if not index.is_file():
        return [folder / stem] if (folder / stem).is_file() else []
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise MismatchError(f"{index}: not an index of weights: {error}") from None
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise MismatchError(f"{folder}: {', '.join(missing)} named by {index.name} is missing.", hint="Copy it again.")
    return [folder / name for name in names]


def _write_shards(
    folder: Path, tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype, max_shard_bytes: int
) -> dict[str, tuple[int, ...]]:
    """Write all shards and, where there are several, their index; return the shape of each tensor."""
    shapes: dict[str, tuple[int, ...]] = {}
    shards: list[list[str]] = []
    total_bytes = 0
    for shard in _shards(tensors, dtype, max_shard_bytes):
        save_file(shard, folder / f"{len(shards)}.part", metadata={"format": "pt"})
        shards.append(list(shard))
        shapes |= {name: tuple(tensor.shape) for name, tensor in shard.items()}
        total_bytes += sum(tensor.nbytes for tensor in shard.values())
    _name_shards(folder, shards, total_bytes)
    return shapes


def _shards(tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype, max_shard_bytes: int) -> Iterator[dict[str, Tensor]]:
    """Group tensors, cast to `dtype`, into dictionaries of at most `max_shard_bytes` (or one tensor)."""
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        stored = tensor.detach().to("cpu", dtype).contiguous()
        if shard and size + stored.nbytes > max_shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = stored
        size += stored.nbytes
    yield shard


def _name_shards(folder: Path, shards: Sequence[Sequence[str]], total_bytes: int) -> None:
    """Rename the numbered parts, now that their number is known, and write the index where there are several."""
    if len(shards) == 1:
        (folder / "0.part").rename(folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for index, names in enumerate(shards):
        file_name = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"{index}.part").rename(folder / file_name)
        weight_map |= dict.fromkeys(names, file_name)
    content = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", content)


def _generation_config(config: ModelConfig, eos_token_ids: Sequence[int] | None) -> dict[str, Any]:
    eos: int | list[int] | None = list(eos_token_ids) if eos_token_ids else config.eos_token_id
    return {"bos_token_id": config.bos_token_id, "eos_token_id": eos}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
