"""What to convert, and how: `Conversion`, from which the flags of `medsft convert` are made. Its process gets it as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from medsft.core.config.options import check_ranges, converted, option, plain
from medsft.core.files import check_is_new
from medsft.core.models.inspect import BaseModel, inspect_base
from medsft.core.models.megatron import saved_folder
from medsft.core.models.run_folder import UNREADABLE_MANIFEST, read_manifest
from medsft.errors import ConfigError, MismatchError

_GGUF = "llama.cpp makes one of a Hugging Face folder: python llama.cpp/convert_hf_to_gguf.py DIR --outfile FILE.gguf"
_TO, _FROM = "To a Megatron-LLM folder", "From a Megatron-LLM folder"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """A checkpoint to read, and the folder to write it to."""

    source: Path = option(MISSING, "Hugging Face or Megatron-LLM folder, run, checkpoint or GGUF file", argument="SRC")
    destination: Path = option(MISSING, "New folder", argument="DST")
    to: str = option(MISSING, "Format to write", choices=("hf", "megatron", "dcp"), elsewhere={"gguf": _GGUF})
    dtype: str = option(
        "keep",
        "Number format of the weights; keep: the narrowest that holds every weight exactly",
        choices=("keep", "bf16", "fp32"),
    )
    iteration: int | None = option(None, "Saved iteration to read; the latest when not given", minimum=0)
    true_vocab_size: int | None = option(
        None,
        "Rows that belong to tokens: more are cut off, missing ones are made; the source's when not given",
        minimum=1,
    )
    vocab_divisible_by: int | None = option(
        None, "Pad the vocabulary to a multiple of N (times --tp); 128 for megatron, no padding for the others", minimum=1
    )
    new_token_init: str = option("mean", "Rows of new tokens", choices=("mean", "copy_last"))
    verify: bool | None = option(None, "Compare logits before and after; done by default when the model fits into memory")
    tp: int = option(1, "Tensor-parallel size", _TO, minimum=1)
    pp: int = option(1, "Pipeline size", _TO, minimum=1)
    as_iteration: int | None = option(
        None, "Iteration to write it as, 0 for `release`; the source's when not given", _TO, minimum=0
    )
    optimizer: bool = option(False, "From a run: optimizer, schedule and random states too, to resume there", _TO, only_on=True)
    norm_eps: float | None = option(None, "Norm epsilon, where the files are wrong", _FROM, above=0)
    rope_theta: float | None = option(None, "Rotary base, where the files are wrong", _FROM, above=0)
    rope_scaling_factor: float | None = option(None, "Rotary scaling, where the files are wrong", _FROM, above=0)
    legacy_rotary: bool = option(False, "The rows are in the order of the old rotary code", _FROM, only_on=True)

    def to_json(self) -> str:
        """Return the argument of the process that converts; `from_json` is the inverse."""
        return json.dumps(plain(self))

    @classmethod
    def from_json(cls, text: str) -> Conversion:
        """Return the conversion that `to_json` wrote."""
        return cls.of(json.loads(text))

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Conversion:
        """Build a conversion from plain values.

        Raises `ConfigError` with each value that is of a wrong type, none of its choices, or beyond its limits.
        """
        conversion = cls(**converted(cls, values))
        if problems := check_ranges(conversion):
            raise ConfigError(problems)
        return conversion


def iteration_to_write(job: Conversion, base: BaseModel) -> int | None:
    """Return the iteration as which a Megatron-LLM folder gets the source; None for `release`."""
    return (base.iteration if job.as_iteration is None else job.as_iteration) or None


def look_at_source(job: Conversion) -> BaseModel:
    """Return what lies at the source, without torch.

    Raises `MismatchError` when a conversion cannot begin: the source is no checkpoint, the destination is taken, or `optimizer`
    is asked for where there is none. A Megatron-LLM folder may have other iterations: of it, only the one to write must be new.
    """
    base = inspect_base(job.source, job.iteration)
    if base.kind == "medsft-run" and _has_adapter(base):
        raise MismatchError(
            f"{job.source}: a run that trains an adapter, whose checkpoints hold no whole model.",
            hint=f"Convert its finished model, or write one: medsft export {job.source} --to DIR --export merged",
        )
    to_megatron = job.to == "megatron"
    check_is_new(saved_folder(job.destination, iteration_to_write(job, base)) if to_megatron else job.destination)
    if job.optimizer and (not to_megatron or base.kind != "medsft-run"):
        raise MismatchError("--optimizer is for a run of medsft as the source and --to megatron.")
    return base


def _has_adapter(base: BaseModel) -> bool:
    try:
        return "adapter" in read_manifest(base.weights)
    except UNREADABLE_MANIFEST:  # `core.run.integrity` says so
        return False
