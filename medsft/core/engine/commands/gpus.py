"""The GPUs that torch sees, as JSON: `python -m medsft.core.engine.commands.gpus`. For `core.gpus`."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from medsft.core.engine.commands.entry_point import run_process


def visible_gpus() -> list[dict[str, Any]]:
    """Return the fields of `core.gpus.Gpu` for each GPU; nothing where this build of torch, or the driver, shows none."""
    if not torch.cuda.is_available():
        return []
    return [_facts(number) for number in range(torch.cuda.device_count())]


def _facts(number: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(number)
    capability = float(f"{properties.major}.{properties.minor}")
    # ROCm numbers its devices otherwise; every one that its builds of torch support multiplies bf16.
    bf16 = torch.version.hip is not None or properties.major >= 8
    return {"name": properties.name, "memory_bytes": properties.total_memory, "capability": capability, "bf16": bf16}


def main(_arguments: list[str]) -> None:
    """Entry point of the process."""
    print(json.dumps(visible_gpus()))  # noqa: T201 - its result


if __name__ == "__main__":
    sys.exit(run_process(main))
