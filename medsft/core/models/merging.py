"""What to merge, and into what: `Merge`, from which the flags of `medsft merge` are made. Its process gets it as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from medsft.core.config.options import check_ranges, converted, option, plain
from medsft.core.files import check_is_new
from medsft.core.models.adapter_base import adapter_with_base
from medsft.core.models.adapter_folder import AdapterFolder
from medsft.core.models.inspect import BaseModel
from medsft.errors import ConfigError


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

    Raises as `adapter_with_base`, and `MismatchError` when the destination is taken.
    """
    check_is_new(job.to)
    return adapter_with_base(job.adapter, job.base)
