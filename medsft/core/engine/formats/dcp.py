"""Reads the model out of a torch.distributed.checkpoint folder, whatever layout wrote it, one tensor at a time."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from medsft.core.architecture import ModelConfig, read_hf_config
from medsft.core.engine.formats.source import Slices, check_complete, sha256_of_files
from medsft.errors import MismatchError

PREFIX = "model."
"""Weights lie beside the optimiser's state, under this and their Hugging Face name."""


class DcpSource:
    """Weights of a checkpoint folder with `config.json` beside the shards. See `WeightSource`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.config: ModelConfig = read_hf_config(folder)
        self._reader = dcp.FileSystemReader(folder)
        try:
            entries = self._reader.read_metadata().state_dict_metadata
        except Exception as error:  # unpickling a damaged file raises what it likes
            raise MismatchError(f"{folder / '.metadata'}: cannot be read: {type(error).__name__}") from None
        self._entries = {
            name.removeprefix(PREFIX): entry
            for name, entry in entries.items()
            if name.startswith(PREFIX) and isinstance(entry, TensorStorageMetadata)
        }
        rows = self._entries["model.embed_tokens.weight"].size[0] if "model.embed_tokens.weight" in self._entries else 0
        self.config = self.config.with_vocab(rows)
        check_complete(self.config, {name: self.shape(name) for name in self._entries}, where=str(folder))

    def names(self) -> tuple[str, ...]:
        """Return the names of all weights, in the order of the forward pass."""
        return tuple(name for name, _ in self.config.parameter_shapes())

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the full shape of a weight."""
        return tuple(self._entries[name].size)

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype that `read` gives."""
        return self._entries[name].properties.dtype

    def read(self, name: str, slices: Slices | None = None) -> Tensor:
        """Return a weight, or the part of it in `slices`."""
        tensor = torch.empty(self.shape(name), dtype=self.dtype(name))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns that one process reads alone, which is what we want
            dcp.load({PREFIX + name: tensor}, storage_reader=dcp.FileSystemReader(self._folder), no_dist=True)
        return tensor if slices is None else tensor[slices].clone()

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of the files that hold the weights."""
        return sha256_of_files(self._folder.glob("*.distcp"))


def open_dcp(folder: Path) -> DcpSource:
    """Open one checkpoint folder. Raises `MismatchError` when it is damaged or holds no whole model."""
    return DcpSource(folder)
