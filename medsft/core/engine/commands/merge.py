"""Merge an adapter into its base model, with the memory of about one layer.

    python -m medsft.core.engine.commands.merge MERGE

takes a `Merge` as JSON, and prints the result as JSON on standard output.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch

from medsft.core.data.tokenizers.hugging_face import HuggingFaceTokenizer
from medsft.core.data.tokenizers.modelfile import write_modelfile
from medsft.core.data.tokenizers.tokenizer_config import chat_template, read_tokenizer_config
from medsft.core.disk import writing_to
from medsft.core.engine.commands.entry_point import run_process
from medsft.core.engine.commands.rounding import rounding_note
from medsft.core.engine.commands.tokenizer_files import files_of_tokenizer, tokenizer_files_in
from medsft.core.engine.commands.verify import LogitDifference, compare_random, fits_in_memory
from medsft.core.engine.formats.adapters import MergedSource, base_as_held, check_tied_tables, open_adapter
from medsft.core.engine.formats.hf import fill_hf, open_hf
from medsft.core.engine.formats.open import open_source
from medsft.core.engine.formats.source import DTYPES, FreshSource, WeightSource, exact_dtype
from medsft.core.engine.formats.vocabulary import ResizedSource
from medsft.core.files import new_folder
from medsft.core.models.adapter_folder import AdapterFolder
from medsft.core.models.config import ModelConfig, named_end_tokens
from medsft.core.models.merging import Merge, look_at_merge
from medsft.core.models.tensors import EMBEDDING, OUTPUT
from medsft.core.planning.base import doubts_about_base
from medsft.errors import ExitCode


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What was written."""

    destination: str
    base: str
    parameters: int
    bytes: int
    dtype: str
    vocab_size: int
    """Rows of the tables."""
    rounding: LogitDifference | None
    """Between base and adapter in fp32, and the weights that were written, over some fixed tokens; None where the model does
    not fit into memory."""
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def merge(job: Merge) -> Merged:
    """Write the merged model: base and adapter added up in fp32, rounded once.

    Raises as `look_at_merge`, and `DiskError` when the disk does not take the destination, of which nothing is left.
    """
    folder, base = look_at_merge(job)
    assert base.config is not None
    adapter = open_adapter(folder)
    if base.config.tie_embeddings:
        check_tied_tables(adapter, folder.path)
    source: WeightSource = FreshSource(lambda: open_source(base.path))
    dtype = exact_dtype(source) if job.dtype == "keep" else DTYPES[job.dtype]
    warnings = [*base.warnings, *doubts_about_base(folder, base)]
    tokenizer = tokenizer_files_in(folder.path) if folder.tokenizer else files_of_tokenizer(base, warnings)
    held = base_as_held(source, folder.base_precision)
    merged = MergedSource(ResizedSource(held, _rows(folder, base.config, warnings)), adapter)
    ends = _ends(merged.config, folder)
    # generation_config.json has them all; programs that read config.json expect one.
    config = replace(merged.config, eos_token_id=next(iter(ends), None), other_end_token_ids=())
    with writing_to(job.to, ExitCode.TRAINING), new_folder(job.to) as aside:
        fill_hf(
            aside, config, ((name, merged.read(name)) for name in merged.names()), dtype=dtype, eos_token_ids=ends, name=job.to
        )
        for file in tokenizer:
            shutil.copyfile(file, aside / file.name)
        if (template := chat_template(aside, read_tokenizer_config(aside))) is not None:
            write_modelfile(aside, template)
        rounding = compare_random(merged, FreshSource(lambda: open_hf(aside))) if fits_in_memory(config) else None
    return Merged(
        destination=str(job.to),
        base=str(base.path),
        parameters=config.num_parameters(),
        bytes=sum(path.stat().st_size for path in job.to.rglob("*") if path.is_file()),
        dtype=str(dtype).removeprefix("torch."),
        vocab_size=config.vocab_size,
        rounding=rounding,
        notes=() if rounding is None else (rounding_note(rounding, _spoken(dtype), over="drawn at random"),),
        warnings=tuple(warnings),
    )


def _rows(adapter: AdapterFolder, base: ModelConfig, warnings: list[str]) -> int:
    """Return the rows of the merged tables: one for each token of the adapter's tokenizer, too."""
    rows = adapter.vocab_size(base)
    if adapter.tables:
        return rows
    if adapter.tokenizer is not None and adapter.tokenizer.is_dir():
        rows = max(rows, HuggingFaceTokenizer(adapter.tokenizer / "tokenizer.json", ()).vocab_size)
    tables = (EMBEDDING,) if base.tie_embeddings else (EMBEDDING, OUTPUT)
    made = sorted({row for table in tables for row in set(range(base.vocab_size, rows)) - set(adapter.rows.get(table, ()))})
    if made:
        warnings.append(
            f"{adapter.path} has no values for {len(made)} of the rows that it adds to the tables ({made[0]}, ...): they are "
            "the mean of the others."
        )
    return rows


def _ends(config: ModelConfig, adapter: AdapterFolder) -> list[int]:
    """Return the ids at which an answer ends: those that the adapter names, else its tokenizer's end and the base's."""
    if named := named_end_tokens(adapter.path):
        return list(named)
    end = None
    if adapter.tokenizer is not None and adapter.tokenizer.is_dir():
        end = HuggingFaceTokenizer(adapter.tokenizer / "tokenizer.json", ()).eos_id
    every = dict.fromkeys((end, config.eos_token_id, *config.other_end_token_ids))
    return [id_ for id_ in every if id_ is not None]


def _spoken(dtype: torch.dtype) -> str:
    """Return the name of a number format that people type, or that of torch."""
    return next((name for name, known in DTYPES.items() if known == dtype), str(dtype).removeprefix("torch."))


def main(arguments: Sequence[str]) -> None:
    """Entry point of the process; prints the result."""
    result = merge(Merge.from_json(arguments[0]))
    print(json.dumps(asdict(result), indent=2))  # noqa: T201 - its result


if __name__ == "__main__":
    sys.exit(run_process(main))
