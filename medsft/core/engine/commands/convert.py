"""Convert a checkpoint of any known format to any other, at any tp and pp, with the memory of about one layer.

    python -m medsft.core.engine.commands.convert CONVERSION

takes a `Conversion` as JSON, and prints the result as JSON on standard output.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from medsft.core.disk import writing_to
from medsft.core.engine.commands.entry_point import run_process
from medsft.core.engine.commands.handover import RunState, run_state
from medsft.core.engine.commands.tokenizer_files import files_of_tokenizer
from medsft.core.engine.commands.verify import fits_in_memory, logit_difference
from medsft.core.engine.formats.dcp import fill_dcp
from medsft.core.engine.formats.hf import fill_hf
from medsft.core.engine.formats.megatron import open_megatron, write_megatron
from medsft.core.engine.formats.megatron.layout import padded_rows
from medsft.core.engine.formats.open import open_source
from medsft.core.engine.formats.source import DTYPES, FreshSource, WeightSource, exact_dtype
from medsft.core.engine.formats.vocabulary import ResizedSource
from medsft.core.files import new_folder, parents_of, sync_entry
from medsft.core.models.conversion import Conversion, iteration_to_write, look_at_source
from medsft.core.models.inspect import BaseModel, inspect_base
from medsft.core.run.integrity import damage, find_good
from medsft.core.run.rundir import RunDir
from medsft.errors import ExitCode, MismatchError

LARGEST_DIFFERENCE = 1e-3
"""Logits of the same weights may differ by this: kernels add up in an order that depends on where in memory a tensor lies."""
_MEGATRON_DIVISOR = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """What was written."""

    destination: str
    format: str
    parameters: int
    bytes: int
    dtype: str
    vocab_size: int
    """Rows that belong to tokens."""
    created_rows: tuple[int, ...]
    """Ids of new tokens whose rows were made."""
    largest_logit_difference: float | None
    """Between source and destination over some fixed tokens; None when not verified."""
    warnings: tuple[str, ...]


def convert(job: Conversion) -> Converted:
    """Write the destination and verify it.

    Raises `MismatchError` when the source cannot be read, does not fit the destination, or the destination exists (nothing is
    written then); and when logits differ although every weight was kept exactly (the destination is left to be looked at).
    Raises `DiskError` when the disk does not take the destination, of which nothing is left.
    """
    base, passed_over = _good_base(job)
    job = replace(job, iteration=base.iteration) if base.kind == "medsft-run" else job
    state = run_state(base) if base.kind == "medsft-run" else None
    # Opening a GGUF file parses its vocabulary, which takes seconds; and quantized files are small.
    source = _open(base, job) if base.kind == "gguf" else FreshSource(lambda: _open(base, job))
    exact = exact_dtype(source)
    dtype = exact if job.dtype == "keep" else DTYPES[job.dtype]
    tokens = job.true_vocab_size or (state.vocab_size if state else source.config.vocab_size)
    created = ResizedSource(source, tokens).created
    warnings = [*passed_over, *base.warnings, *_vocabulary_warning(job, base)]
    tokenizer = files_of_tokenizer(base, warnings)
    with writing_to(job.destination, ExitCode.TRAINING):
        _write(_Opened(job=job, base=base, source=source, tokens=tokens, dtype=dtype, state=state, tokenizer=tokenizer))
    difference = None
    if job.verify or (job.verify is None and fits_in_memory(source.config)):
        difference = logit_difference(source, FreshSource(lambda: open_source(job.destination)))
        if not math.isfinite(difference):
            raise MismatchError(
                f"{job.source}: the model computes logits that are not finite: weights are NaN, infinite or too large.",
                hint=f"{job.destination} was written and is as damaged; take another copy of the model, and remove it.",
            )
        if torch.promote_types(exact, dtype) == dtype and difference > LARGEST_DIFFERENCE:
            raise MismatchError(
                f"{job.destination}: logits differ from the source's by up to {difference:g}, but no weight was rounded.",
                hint="Do not use it; please report this.",
            )
    return Converted(
        destination=str(job.destination),
        format=job.to,
        parameters=source.config.with_vocab(tokens).num_parameters(),
        bytes=sum(path.stat().st_size for path in job.destination.rglob("*") if path.is_file()),
        dtype=str(dtype).removeprefix("torch."),
        vocab_size=tokens,
        created_rows=tuple(created),
        largest_logit_difference=difference,
        warnings=tuple(warnings),
    )


def _good_base(job: Conversion) -> tuple[BaseModel, list[str]]:
    """Return the source, of a run its latest good checkpoint, and a line for each later one that is damaged.

    Raises `MismatchError` when the checkpoint that was asked for is damaged, or all are.
    """
    base = look_at_source(job)
    if base.kind != "medsft-run":
        return base, []
    if job.iteration is not None:
        problem = damage(base.weights)
        if problem:
            raise MismatchError(f"{base.weights} is damaged: {problem}", hint="Convert another: --iteration N.")
        return base, []
    number, passed_over = find_good(RunDir(job.source))
    if number is None:
        raise MismatchError("\n".join([f"{job.source}: no checkpoint to convert.", *passed_over]))
    return inspect_base(job.source, number), passed_over


def _open(base: BaseModel, job: Conversion) -> WeightSource:
    if base.kind != "megatron":
        return open_source(job.source, iteration=job.iteration)
    return open_megatron(
        job.source,
        job.iteration,
        legacy_rotary=job.legacy_rotary,
        norm_eps=job.norm_eps,
        rope_theta=job.rope_theta,
        rope_scaling_factor=job.rope_scaling_factor,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """What a conversion has found and decided before anything is written."""

    job: Conversion
    base: BaseModel
    source: WeightSource
    tokens: int
    """Rows of the tables that belong to tokens."""
    dtype: torch.dtype
    state: RunState | None
    """What a run has beside its weights; None for other sources."""
    tokenizer: Sequence[Path]
    """Files to be copied beside the weights."""


def _write(opened: _Opened) -> None:
    job = opened.job
    if job.to == "megatron":
        _write_megatron(opened)
    else:
        rows = padded_rows(opened.tokens, job.vocab_divisible_by, tp=1) if job.vocab_divisible_by else opened.tokens
        resized = ResizedSource(opened.source, opened.tokens, rows=rows, new_rows=job.new_token_init)  # type: ignore[arg-type]
        with new_folder(job.destination) as aside, _with_tokenizer(opened.tokenizer, aside):
            if job.to == "hf":
                tensors = ((name, resized.read(name)) for name in resized.names())
                fill_hf(aside, resized.config, tensors, dtype=opened.dtype, name=job.destination)
            else:
                fill_dcp(aside, resized, dtype=opened.dtype)


@contextmanager
def _with_tokenizer(files: Sequence[Path], folder: Path) -> Iterator[None]:
    """Copy a tokenizer beside what the block writes into a folder; the copies go again when that fails."""
    made = []
    try:
        for file in files:
            copy = folder / file.name
            if not copy.exists():  # one more iteration in the folder of the source
                made.append(copy)
                shutil.copyfile(file, copy)
                sync_entry(copy)
        yield
    except BaseException:
        for copy in made:
            with suppress(OSError):
                copy.unlink(missing_ok=True)
        raise


def _write_megatron(opened: _Opened) -> None:
    job, base, state, tokenizer = opened.job, opened.base, opened.state, opened.tokenizer
    with parents_of(job.destination / "any"), _with_tokenizer(tokenizer, job.destination):
        write_megatron(
            job.destination,
            opened.source,
            tp=job.tp,
            pp=job.pp,
            dtype=opened.dtype,
            iteration=iteration_to_write(job, base),
            true_vocab_size=opened.tokens,
            vocab_divisible_by=job.vocab_divisible_by or _MEGATRON_DIVISOR,
            new_rows=job.new_token_init,  # type: ignore[arg-type]
            with_tokenizer_model=any(file.name == "tokenizer.model" for file in tokenizer),
            training_args=state.arguments if state else base.saved_arguments,
            optimizer=state.optimizer if state and job.optimizer else None,
        )


def _vocabulary_warning(job: Conversion, base: BaseModel) -> list[str]:
    if base.vocab_known or job.true_vocab_size is not None or base.config is None:
        return []
    return [f"All {base.config.vocab_size} rows of the tables were kept; --true_vocab_size N cuts those that are padding."]


def main(arguments: Sequence[str]) -> None:
    """Entry point of the process; prints the result."""
    result = convert(Conversion.from_json(arguments[0]))
    print(json.dumps(asdict(result), indent=2))  # noqa: T201 - its result


if __name__ == "__main__":
    sys.exit(run_process(main))
