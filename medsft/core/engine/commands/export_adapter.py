"""The model of a run that trained an adapter, in two forms: base and adapter in one, and the adapter by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from medsft.core.data.dataset.dataset import open_tokenized
from medsft.core.engine.commands.adapter_card import adapter_card, loading_notes
from medsft.core.engine.commands.verify import LogitDifference, compare_logits, fits_in_memory
from medsft.core.engine.formats.adapters import MergedSource
from medsft.core.engine.formats.hf import open_hf
from medsft.core.engine.formats.peft import fill_peft
from medsft.core.engine.formats.run_adapter import TrainedAdapter
from medsft.core.engine.formats.source import FreshSource, WeightSource
from medsft.core.planning.plan import RunPlan
from medsft.core.run.view import RunView
from medsft.errors import DataError

ADAPTER_FOLDER = "adapter"
"""In the folder of a model: the adapter by itself, in PEFT's format."""
_DOCUMENTS = 8
_WORK = 2e11
"""Parameters times tokens of a comparison: some tens of seconds on a laptop."""
_FEWEST_TOKENS, _MOST_TOKENS = 32, 2048


def write_adapter(folder: Path, view: RunView, trained: TrainedAdapter) -> list[str]:
    """Write the adapter by itself into a new folder below one that is there, and return what to know to load it.

    It names the base by the path that it was trained from.
    """
    plan = trained.plan
    folder.mkdir()
    fill_peft(
        folder,
        trained.adapter,
        plan.base.model,
        base=str(trained.weights),
        fingerprint=plan.base.fingerprint,
        base_precision=trained.base_precision,
    )
    (folder / "README.md").write_text(adapter_card(view, trained), encoding="utf-8")
    return loading_notes(trained)


def compare_with_merged(plan: RunPlan, merged: MergedSource, folder: Path) -> LogitDifference | None:
    """Compare what base and adapter compute in fp32 with the merged model in `folder`, over some documents of the run.

    They are of the validation set, where there is one. None where the model does not fit into memory, or the set is gone.
    """
    documents = _documents(plan)
    if not documents or not fits_in_memory(merged.config):
        return None
    tokens = torch.from_numpy(np.concatenate(documents).astype(np.int64))
    written: WeightSource = FreshSource(lambda: open_hf(folder))
    return compare_logits(merged, written, tokens, [len(document) for document in documents])


def _documents(plan: RunPlan) -> list[np.ndarray]:
    """Return the first tokens of some documents spread over a set of the run."""
    limit = int(_WORK / _DOCUMENTS / plan.base.model.num_parameters())
    most = min(max(limit, _FEWEST_TOKENS), _MOST_TOKENS)
    try:
        tokenized = open_tokenized(Path((plan.val or plan.train).folder))
    except DataError:
        return []
    count = tokenized.num_documents
    chosen = sorted({place * count // _DOCUMENTS for place in range(_DOCUMENTS)})
    return [tokenized.tokens(number)[:most] for number in chosen]
