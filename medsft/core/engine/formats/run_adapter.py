"""The adapter in a checkpoint of a run, and with it in the base model that it was trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsft.core.config.lora import LoraSpec
from medsft.core.engine.formats.adapters import MergedSource, StoredAdapter, base_as_held
from medsft.core.engine.formats.dcp import DcpTensors
from medsft.core.engine.formats.source import DTYPES, WeightSource
from medsft.core.engine.formats.vocabulary import ResizedSource
from medsft.core.models.inspect import inspect_base
from medsft.core.models.run_folder import read_manifest
from medsft.core.models.tensors import EMBEDDING, OUTPUT
from medsft.core.planning.base import sampled_fingerprint
from medsft.core.planning.plan import RunPlan
from medsft.core.run.launch import load_plan
from medsft.core.run.rundir import RunDir
from medsft.errors import MismatchError


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedAdapter:
    """The adapter in a checkpoint of a run, with its base."""

    plan: RunPlan
    adapter: StoredAdapter
    merged: MergedSource
    """Base and adapter in one, in fp32 where the adapter changes something, with one row for each token."""
    weights: Path
    """The folder or file that holds the weights of the base."""
    base_precision: str
    """Format of the matrices of the base's layers while the adapter was trained."""

    @property
    def trained_rows(self) -> int:
        """Return how many tokens have rows of the adapter."""
        return len(next(iter(self.adapter.rows.values()), ()))


def adapter_record(checkpoint: Path) -> Mapping[str, Any] | None:
    """Return what the manifest of a checkpoint says of an adapter in it; None where it holds a whole model."""
    try:
        return read_manifest(checkpoint).get("adapter")
    except (OSError, ValueError):  # `convert --to dcp` writes none
        return None


def open_trained(
    checkpoint: Path, record: Mapping[str, Any], open_base: Callable[[Path, int | None], WeightSource]
) -> TrainedAdapter:
    """Open the adapter in a checkpoint of a run and, by `open_base` (path, iteration), the base model.

    `record` is what the checkpoint says of its adapter. Rows of tokens that the base did not have, or had never trained, are
    all the adapter's. Raises `MismatchError` when the base is not there, or is not the one of the training.
    """
    plan = load_plan(RunDir(checkpoint.parent))
    model, path = plan.base.model, Path(plan.base.path)
    weights = inspect_base(path, plan.base.iteration).weights
    if record["base model"] != sampled_fingerprint(weights):
        raise MismatchError(
            f"{path}: its files are not those of the base model that the adapter in {checkpoint.parent} was trained on.",
            hint="Put the model back that the run was started with.",
        )
    rows = [row for row in record["trained rows"] if row < model.vocab_size]
    tables = (EMBEDDING,) if model.tie_embeddings else (EMBEDDING, OUTPUT)
    lora = LoraSpec(rank=record["rank"], alpha=record["alpha"], targets=tuple(record["targets"]), rslora=record["rslora"])
    adapter = StoredAdapter(lora=lora, rows=dict.fromkeys(tables, rows) if rows else {}, read=DcpTensors(checkpoint).read)
    precision = record["base precision"]
    base = ResizedSource(open_base(path, plan.base.iteration), model.vocab_size)
    merged = MergedSource(base_as_held(base, precision, DTYPES[plan.precision]), adapter)
    return TrainedAdapter(plan=plan, adapter=adapter, merged=merged, weights=weights, base_precision=precision)
