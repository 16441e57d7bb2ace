"""What checkpoints hold, and that a run which goes on from one is the run that was never stopped."""

from __future__ import annotations

import tiny
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from medsft.core.planning.plan import RunPlan
from medsft.core.run.rundir import RunDir


def tensors_of(run: RunDir, iteration: int) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint but random states: weights and moments, whole."""
    path = run.checkpoint_path(iteration)
    entries = FileSystemReader(path).read_metadata().state_dict_metadata
    found: dict[str, torch.Tensor] = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in entries.items()
        if isinstance(entry, TensorStorageMetadata) and not key.startswith("random.")
    }
    dcp.load(found, storage_reader=FileSystemReader(path), no_dist=True)
    return found


def assert_goes_on_bit_for_bit(plan: RunPlan) -> None:
    """A run of 6 iterations that saves each third, taken up again after the third: losses, norms, weights and moments."""

    def train() -> list[list[float]]:
        return tiny.series(tiny.train(plan), "step", "iteration", "loss", "grad_norm")

    straight = train()
    run = tiny.create(plan)
    expected = tensors_of(run, 6)
    tiny.go_back_to(run, 3)
    assert train()[len(straight) :] == straight[3:]
    found = tensors_of(run, 6)
    assert found.keys() == expected.keys() != set()
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key
