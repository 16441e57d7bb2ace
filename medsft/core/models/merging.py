"""What to merge, and into what: `Merge`, from which the flags of `medsft merge` are made. Its process gets it as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from medsft.core.config.options import check_ranges, converted, option, plain
from medsft.core.files import check_is_new
from medsft.core.models.adapter_folder import AdapterFolder, check_fits, read_adapter
from medsft.core.models.inspect import BaseModel, inspect_base
from medsft.core.models.other_folders import how_to_fetch
from medsft.errors import ConfigError, MismatchError, Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """An adapter, its base model, and the folder for the two in one."""

    adapter: Path = option(MISSING, "Folder of a LoRA adapter, of medsft or PEFT (adapter_config.json)", argument="ADAPTER")
    to: Path = option(MISSING, "New folder for the merged model, in Hugging Face format")
    base: Path | None = option(
        None, "Its base model, in any format that convert reads; the one that the adapter names when not given"
    )
    dtype: str = option("keep", "Number format of the weights; keep: that of the base model", choices=("keep", "bf16", "fp32"))

    def to_json(self) -> str:
        """Return the argument of the process that merges; `from_json` is the inverse."""
        return json.dumps(plain(self))

    @classmethod
    def from_json(cls, text: str) -> Merge:
        """Return the job that `to_json` wrote."""
        return cls.of(json.loads(text))

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Merge:
        """Build a job from plain values. Raises `ConfigError` with each value that is of a wrong type or none of its
        choices."""
        job = cls(**converted(cls, values))
        if problems := check_ranges(job):
            raise ConfigError(problems)
        return job


def look_at_merge(job: Merge) -> tuple[AdapterFolder, BaseModel]:
    """Return the adapter and its base, without torch.

    Raises `ConfigError` when the base is not known or not here, and `MismatchError` when one of the two cannot be read, they do
    not fit each other, or the destination is taken.
    """
    check_is_new(job.to)
    adapter = read_adapter(job.adapter)
    base = inspect_base(job.base or base_of_adapter(adapter))
    if base.config is None:
        raise MismatchError(f"{base.path}: cannot tell which model this is.", hint="Convert it first: medsft convert.")
    check_fits(adapter, base.config, where=str(base.path))
    return adapter, base


def base_of_adapter(adapter: AdapterFolder) -> Path:
    """Return the base model that an adapter names. Raises `ConfigError` when it names none, or one that is not here."""
    named = Path(adapter.base)
    if not adapter.base:
        raise ConfigError(
            [Problem("--base", f"{adapter.path} does not say which base model it belongs to", "Give its folder.")]
        )
    if not named.exists():
        text = f"{adapter.path} belongs to {adapter.base}, which is not here"
        raise ConfigError([Problem("--base", text, how_to_fetch(adapter.base) or "Give the folder of that model.")])
    return named
