"""Opens a checkpoint on disk in whichever format it is."""

from __future__ import annotations

from pathlib import Path
from typing import assert_never

from medsft.core.engine.formats.source import WeightSource
from medsft.core.models.inspect import inspect_base


def open_source(path: Path, *, iteration: int | None = None) -> WeightSource:
    """Open a Hugging Face folder, a Megatron-LLM folder, a GGUF file, a run of medsft or one of its checkpoints.

    A checkpoint with an adapter is given with the adapter in its base. `iteration` picks one of several in the folder; None
    takes the latest. Raises `MismatchError` as `inspect_base` does, and for files that are damaged or do not fit the model's
    description.
    """
    base = inspect_base(path, iteration)
    # Only the format that is there is imported: the others take a rank half a second to start.
    match base.kind:
        case "hf":
            from medsft.core.engine.formats.hf import open_hf

            return open_hf(base.weights)
        case "megatron":
            from medsft.core.engine.formats.megatron import open_megatron

            return open_megatron(path, iteration)
        case "gguf":
            from medsft.core.engine.formats.gguf import open_gguf

            return open_gguf(base.weights)
        case "dcp" | "medsft-run":
            from medsft.core.engine.formats.dcp import open_dcp
            from medsft.core.engine.formats.run_adapter import adapter_record, open_trained

            record = adapter_record(base.weights)
            if record is None:
                return open_dcp(base.weights)
            return open_trained(base.weights, record, lambda path, of: open_source(path, iteration=of)).merged
        case unknown:
            assert_never(unknown)
