"""Where a run and its model are written: the original's folder names, and the space that is left there."""

from __future__ import annotations

import shutil
from pathlib import Path

from medsft.core.config.options import format_number
from medsft.core.config.run_config import RunConfig
from medsft.core.data.dataset.dataset import answers_path, validation_folder_of
from medsft.core.models.config import ModelConfig
from medsft.core.models.run_folder import PLAN_NAME, is_run
from medsft.core.paths import check_folder, check_name_length
from medsft.core.planning.layout import Layout
from medsft.errors import Problem

_LONGEST_FAMILY = 16
_BESIDE_A_RUN = 32
"""Bytes by which names beside a folder are longer than its own: `.NAME.rehearsal.json.1234567.tmp`."""
_LLAMA_1_EPS, _LLAMA_2_EPS = 1e-6, 1e-5
_LLAMA_2_SHAPES = {(32, 4096, 32), (40, 5120, 40), (80, 8192, 64)}
"""(layers, hidden size, heads) of Llama 2 7B, 13B and 70B."""
_LLAMA_2_MOST_TOKENS = 40_000
"""It has 32,000, and models made from it have some more; Llama 3 of the same shapes has 128,256."""


def run_folder(config: RunConfig, family: str, layout: Layout) -> Path:
    """Return the run's folder: one that exists at other sizes, for that is a reshard and not another run, or a new one."""
    parent = Path(config.save_checkpoint_dir).expanduser().resolve()
    name = run_folder_name(config, family, layout)
    existing = sorted(parent.glob(f"{run_folder_pattern(config, family)}/{PLAN_NAME}"))
    if existing and not is_run(parent / name):
        return existing[0].parent
    return parent / name


def run_folder_name(config: RunConfig, family: str, layout: Layout) -> str:
    """Return the original's folder name: FAMILY-SIZEb-tpT-ppP-CHECKPOINT-RUN_NAME and a suffix for what is not default."""
    return _folder_name(config, family, f"tp{layout.tp}-pp{layout.pp}")


def export_folder_name(config: RunConfig, family: str) -> str:
    """Return the folder name of the finished model: the run's with `hf` for the parallel sizes."""
    return _folder_name(config, family, "hf")


def run_folder_pattern(config: RunConfig, family: str) -> str:
    """Return a glob that finds the run whatever its parallel sizes."""
    return _folder_name(config, family, "tp*-pp*")


def family_in_names(config: RunConfig, model: ModelConfig, *, saved_as: str | None = None) -> str:
    """Return the family in the names of a run's folders; `saved_as` is the name that a Megatron-LLM folder gives its model.

    A run or a model that medsft 0.1.0 made is found under its name: it wrote `llama-2` for more than Llama 2.
    """
    family, former = family_name(model, saved_as=saved_as), _former_family_name(model)
    parent = Path(config.save_checkpoint_dir).expanduser().resolve()
    return former if former != family and not _made(config, family, parent) and _made(config, former, parent) else family


def family_name(model: ModelConfig, *, saved_as: str | None = None) -> str:
    """Return the family's name in folder names: the original's `llama-2` for Llama 2 and models made from it."""
    if model.family != "llama":
        return model.family
    shape = (model.num_layers, model.hidden_size, model.num_heads)
    like_2 = shape in _LLAMA_2_SHAPES and model.norm_eps == _LLAMA_2_EPS and model.rope_theta == 10000.0
    return "llama-2" if saved_as == "llama2" or (like_2 and model.vocab_size < _LLAMA_2_MOST_TOKENS) else "llama"


def _former_family_name(model: ModelConfig) -> str:
    if model.family == "llama":
        return "llama" if model.norm_eps == _LLAMA_1_EPS else "llama-2"
    return model.family


def _made(config: RunConfig, family: str, parent: Path) -> bool:
    """Tell whether there is a run or a finished model under this family's name."""
    return (parent / export_folder_name(config, family)).exists() or any(
        parent.glob(f"{run_folder_pattern(config, family)}/{PLAN_NAME}")
    )


def check_places(config: RunConfig) -> list[Problem]:
    """Return why the folders of a run cannot be made: a file is in the way, or a name that comes of others is too long."""
    problems = [
        *check_folder("--save_checkpoint_dir", config.save_checkpoint_dir),
        *check_folder("--tokenized_data_dir", config.tokenized_data_dir),
    ]
    widest = Layout(pp=1000, dp=1, tp=1000)
    longest = {name: getattr(config, name) or "" for name in ("id", "run_name", "checkpoint")}
    flag = f"--{max(longest, key=lambda name: len(longest[name]))}"
    too_long = check_name_length(flag, run_folder_name(config, "x" * _LONGEST_FAMILY, widest) + "x" * _BESIDE_A_RUN)
    longest_file = answers_path(validation_folder_of(Path(config.run_name))).name + "x" * _BESIDE_A_RUN
    return problems + (too_long or check_name_length("--run_name", longest_file))


def free_bytes(path: Path) -> int:
    """Return the free bytes of the disk that `path` is on or will be on."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _folder_name(config: RunConfig, family: str, sizes: str) -> str:
    size, suffixes = format_number(config.size), _suffixes(config)
    return f"{family}-{size}b-{sizes}-{config.checkpoint}-{config.run_name}{suffixes}"


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
    if config.lora is not None:
        parts.append(f"-{config.adapter}")
    if config.id:
        parts.append(f"-{config.id}")
    return "".join(parts)
