"""Where a run and its model are written: the original's folder names, and the space that is left there."""

from __future__ import annotations

import shutil
from pathlib import Path

from medsft.core.architecture import ModelConfig
from medsft.core.config import RunConfig, format_number
from medsft.core.planning.layout import Layout

_LLAMA_1_EPS = 1e-6


def run_folder(config: RunConfig, family: str, layout: Layout) -> Path:
    """Return the run's folder: one that exists at other levels, for that is a reshard and not another run, or a new one."""
    parent = Path(config.save_checkpoint_dir).expanduser().resolve()
    name = run_folder_name(config, family, layout)
    existing = sorted(parent.glob(run_folder_pattern(config, family) + "/plan.json"))
    if existing and not (parent / name / "plan.json").is_file():
        return existing[0].parent
    return parent / name


def run_folder_name(config: RunConfig, family: str, layout: Layout) -> str:
    """Return the original's folder name: FAMILY-SIZEb-tpT-ppP-CHECKPOINT-RUN_NAME and a suffix for what is not default."""
    return _folder_name(config, family, f"tp{layout.tp}-pp{layout.pp}")


def export_folder_name(config: RunConfig, family: str) -> str:
    """Return the folder name of the finished model: the run's with `hf` for the levels."""
    return _folder_name(config, family, "hf")


def run_folder_pattern(config: RunConfig, family: str) -> str:
    """Return a glob that finds the run whatever its levels."""
    return _folder_name(config, family, "tp*-pp*")


def family_name(model: ModelConfig) -> str:
    """Return the family's name in folder names; the original writes `llama-2` for all but Llama 1."""
    if model.family == "llama":
        return "llama" if model.norm_eps == _LLAMA_1_EPS else "llama-2"
    return model.family


def free_bytes(path: Path) -> int:
    """Return the free bytes of the disk that `path` is on or will be on."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _folder_name(config: RunConfig, family: str, levels: str) -> str:
    size, suffixes = format_number(config.size), _suffixes(config)
    return f"{family}-{size}b-{levels}-{config.checkpoint}-{config.run_name}{suffixes}"


def _suffixes(config: RunConfig) -> str:
    parts = []
    if config.intermediate_iter is not None:
        parts.append(f"-it{config.intermediate_iter:07d}")
    if config.epochs != 3:
        parts.append(f"-ep{format_number(config.epochs)}")
    if config.seq != 2048:
        parts.append(f"-seq{config.seq}")
    if config.loss_mask != 0:
        parts.append(f"-loss{float(config.loss_mask)}")
    if config.id:
        parts.append(f"-{config.id}")
    return "".join(parts)
