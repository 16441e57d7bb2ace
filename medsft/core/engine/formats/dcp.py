"""Folders of torch.distributed.checkpoint with a `config.json`: checkpoints of our runs, and `medsft convert --to dcp`.

Keys are `model.` + Hugging Face name; a run's checkpoint also has `exp_avg.` and `exp_avg_sq.` + Hugging Face name. Where these
are codes of 8 bits (`kernels.dynamic8`), their scales are under `exp_avg_scale.` and `exp_avg_sq_scale.`.
"""

from __future__ import annotations

import inspect
import json
import pickle
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from medsft.core.engine.formats.source import Slices, WeightSource, sha256_of_files
from medsft.core.engine.kernels.dynamic8 import dequantize_matrix, table
from medsft.core.files import new_folder
from medsft.core.models.config import read_hf_config, to_hf_config
from medsft.core.models.tensors import check_complete, check_left_over
from medsft.errors import MismatchError

Part = Literal["model", "exp_avg", "exp_avg_sq"]
MOMENTS = {"exp_avg": True, "exp_avg_sq": False}
"""Adam's moments, and whether their numbers have a sign."""
SCALE = "_scale"
"""Ending of the key of a moment's scales."""
_METADATA_NAMES = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
}
"""What `.metadata` may name beside dtypes and the classes of torch.distributed.checkpoint."""


def open_dcp(folder: Path, part: Part = "model") -> WeightSource:
    """Open the weights, or one of Adam's moments, in one checkpoint folder.

    Raises `MismatchError` when files are missing or damaged, or do not fit `config.json`.
    """
    return _DcpSource(folder, part)


def write_dcp(folder: Path, source: WeightSource, *, dtype: torch.dtype) -> None:
    """Write the weights of `source` as one checkpoint folder; one tensor at a time is in memory.

    The folder appears under its name only when it is complete; it must not exist before.
    """
    with new_folder(folder) as aside:
        fill_dcp(aside, source, dtype=dtype)


def fill_dcp(folder: Path, source: WeightSource, *, dtype: torch.dtype) -> None:
    """Do what `write_dcp` does in a folder that is there; the caller makes it durable."""
    # Tensors of one element that pretend to be large: the planner replaces each when its turn to be written comes.
    shapes = source.config.parameter_shapes()
    outline = {name: torch.empty((), dtype=dtype).expand(shape) for name, shape in shapes}
    writer = FileSystemWriter(folder, single_file_per_rank=True, thread_count=1, sync_files=False)
    with _alone():
        dcp.save({"model": outline}, storage_writer=writer, planner=_FromSource(source, dtype), no_dist=True)
    config = to_hf_config(source.config, dtype=str(dtype).removeprefix("torch."))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _metadata(folder: Path) -> Metadata:
    """Read the list of contents, which is a pickle: it may name what torch puts there, and nothing else."""
    path = folder / ".metadata"
    try:
        with path.open("rb") as file:
            return _MetadataUnpickler(file).load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise MismatchError(f"{path}: refused; {error}.", hint="Copy the checkpoint again.") from None


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        parts = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
        own = (
            module in parts and inspect.isclass(found := getattr(sys.modules[module], name, None)) and found.__module__ in parts
        )
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if own or dtype or (module, name) in _METADATA_NAMES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for `{module}.{name}`")


@contextmanager
def _alone() -> Iterator[None]:
    """Keep torch from warning that there is only one process: that is what is meant here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


class _CheckedReader(FileSystemReader):
    """Reads by a list of contents that was checked, where torch's own reader would unpickle the file for each weight again."""

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        super().__init__(folder)
        self._metadata = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the list of contents."""
        return self._metadata


class _FromSource(DefaultSavePlanner):
    """Reads each tensor from a source when it is about to be written."""

    def __init__(self, source: WeightSource, dtype: torch.dtype) -> None:
        super().__init__()
        self._source = source
        self._dtype = dtype

    def lookup_object(self, index: MetadataIndex) -> Any:
        return self._source.read(index.fqn.removeprefix("model.")).to(self._dtype).contiguous()


class DcpTensors:
    """The tensors of one part of a checkpoint folder, whichever they are, saved at any layout.

    Raises `MismatchError` when the list of contents, or a tensor that is asked for, is missing or damaged.
    """

    def __init__(self, folder: Path, part: str = "model") -> None:
        self._folder = folder
        self._part = part
        self._metadata = _metadata(folder)
        stored = self._metadata.state_dict_metadata
        self.stored = {
            key.removeprefix(f"{part}."): entry
            for key, entry in stored.items()
            if key.startswith(f"{part}.") and isinstance(entry, TensorStorageMetadata)
        }
        """What is there, by name."""

    def read(self, name: str) -> Tensor:
        """Return a whole tensor."""
        if name not in self.stored:
            raise MismatchError(f"{self._folder}: {name} is missing.", hint="Copy the checkpoint again.")
        tensor = torch.empty(tuple(self.stored[name].size), dtype=self.stored[name].properties.dtype)
        try:
            with _alone():
                reader = _CheckedReader(self._folder, self._metadata)
                dcp.load({self._part: {name: tensor}}, storage_reader=reader, no_dist=True)
        except (CheckpointException, OSError, RuntimeError, EOFError) as error:
            raise MismatchError(f"{self._folder}: {name} cannot be read: {error}", hint="Copy the checkpoint again.") from None
        return tensor


class _DcpSource:
    """Weights in one folder of torch.distributed.checkpoint, saved at any layout."""

    def __init__(self, folder: Path, part: Part) -> None:
        self.config = read_hf_config(folder)
        self._folder = folder
        self._last: tuple[str, Tensor] | None = None
        self._tensors = DcpTensors(folder, part)
        scales = DcpTensors(folder, part + SCALE) if part in MOMENTS else None
        self._scales = scales if scales and scales.stored else None
        self._signed = MOMENTS.get(part, False)
        shapes = {name: tuple(entry.size) for name, entry in self._tensors.stored.items()}
        check_complete(self.config, shapes, where=str(folder))
        check_left_over(self.config, shapes, where=str(folder))

    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.config.parameter_shapes())

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors.stored[name].size)

    def dtype(self, name: str) -> torch.dtype:
        return torch.float32 if self._scales else self._tensors.stored[name].properties.dtype

    def read(self, name: str, slices: Slices | None = None) -> Tensor:
        """Return a weight or a part of it. The last one is kept, because tables are read in blocks."""
        if self._last is None or self._last[0] != name:
            self._last = None
            found = self._tensors.read(name)
            if self._scales and name in self._scales.stored:
                found = dequantize_matrix(found, self._scales.read(name), table(self._signed, found.device))
            self._last = (name, found)
        whole = self._last[1]
        return whole.clone() if slices is None else whole[slices].clone()

    def file(self, name: str) -> Path:
        return self._folder

    def fingerprint(self) -> str:
        return sha256_of_files([self._folder / ".metadata", *self._folder.glob("*.distcp")])
