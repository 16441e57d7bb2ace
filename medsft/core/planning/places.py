"""Where the folders that a plan names are now: a project may have been moved, or be mounted elsewhere, since it was planned.

`plan.json` holds them as they were at the first start, as absolute paths. A path counts as relative to the run's folder: where
that has moved, what lay beside it is looked for beside it first, then under its old path, then where the current medsft.toml
and working folder have it. What has the same fingerprint is the same. `control/launch.json` has the places of the latest start.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from medsft.core.config.options import format_number
from medsft.core.data.dataset.dataset import set_exists
from medsft.core.data.dataset.manifest import read_manifest
from medsft.core.models.adapter_folder import is_adapter, read_adapter
from medsft.core.models.inspect import inspect_base
from medsft.core.planning.base import sampled_fingerprint
from medsft.core.planning.plan import RunPlan
from medsft.core.planning.sets import training_folder
from medsft.core.settings import CheckpointEntry, load_settings
from medsft.errors import MedsftError, MismatchError


def places_of(plan: RunPlan) -> dict[str, str]:
    """Return the paths of a plan that are not part of its identity."""
    return {
        "base": plan.base.path,
        "tokenizer": plan.base.tokenizer,
        "train": plan.train.folder,
        "val": plan.val.folder if plan.val else "",
        "export": plan.export_dir,
        **({"adapter": plan.base.adapter.path} if plan.base.adapter else {}),
    }


def with_places(plan: RunPlan, places: Mapping[str, str]) -> RunPlan:
    """Return the plan with other paths; those that are not given stay."""
    known = {**places_of(plan), **places}
    adapter = plan.base.adapter and replace(plan.base.adapter, path=known["adapter"])
    return replace(
        plan,
        base=replace(plan.base, path=known["base"], tokenizer=known["tokenizer"], adapter=adapter),
        train=replace(plan.train, folder=known["train"]),
        val=replace(plan.val, folder=known["val"]) if plan.val else None,
        export_dir=known["export"],
    )


def moved_to(plan: RunPlan, run_dir: Path) -> RunPlan:
    """Return the plan of a run that lies in `run_dir` now, its paths moved along where something lies there.

    The finished model lies, or will lie, beside the run.
    """
    run_dir = run_dir.resolve()
    if str(run_dir) == plan.run_dir:
        return plan
    found = {name: str(next(filter(Path.exists, _beside(path, plan, run_dir)), path)) for name, path in places_of(plan).items()}
    found["export"] = str(run_dir.parent / Path(plan.export_dir).name)
    return replace(with_places(plan, found), run_dir=str(run_dir))


def _beside(path: str, plan: RunPlan, run_dir: Path) -> list[Path]:
    """Return where a path of a plan may be now: as near to the run as it was, or where it was."""
    if not path:
        return []
    moved = Path(os.path.normpath(run_dir.resolve() / os.path.relpath(path, plan.run_dir)))
    return list(dict.fromkeys((moved, Path(path))))


def with_listed_base(plan: RunPlan, run_dir: Path) -> RunPlan:
    """Return the plan with its base model, and the tokenizer beside it, where the current medsft.toml has the same model.

    As it is where the base model is still where the plan has it, or is listed nowhere. The tokenizer of a run that began with
    an adapter is that adapter's.
    """
    if Path(plan.base.path).exists():
        return plan
    with suppress(MedsftError, OSError):
        entry = _base_again(plan, run_dir)
        found = {"base": str(entry.path.resolve())}
        tokenizer = entry.tokenizer or inspect_base(entry.path, plan.base.iteration).tokenizer
        if tokenizer is not None and plan.base.adapter is None and not Path(plan.base.tokenizer).exists():
            found["tokenizer"] = str(tokenizer.resolve())
        return with_places(plan, found)
    return plan


def find_base_again(plan: RunPlan, run_dir: Path) -> CheckpointEntry:
    """Return the base model of a plan where it is now: one with its fingerprint, or else what lies there to be compared.

    Of a run that began with an adapter, the entry is of that, with its base. Raises `MismatchError` when there is nothing at
    all.
    """
    entry = _base_again(plan, run_dir)
    return entry if plan.base.adapter is None else replace(entry, path=_adapter_again(plan, run_dir), base=entry.path)


def _adapter_again(plan: RunPlan, run_dir: Path) -> Path:
    """Return where the adapter is now that the run began with, as `_base_again` does for the base."""
    assert plan.base.adapter is not None
    beside = _beside(plan.base.adapter.path, plan, run_dir)
    listed = list[Path]()
    with suppress(MedsftError):
        listed.append(load_settings().find_checkpoint(plan.config.checkpoint, plan.config.size).path)
    for path in filter(is_adapter, (*beside, *listed)):
        with suppress(MedsftError, OSError):
            if sampled_fingerprint(read_adapter(path).weights) == plan.base.adapter.fingerprint:
                return path
    if there := next(filter(is_adapter, beside), None):
        return there
    raise MismatchError(
        f"{plan.base.adapter.path}: the adapter that this run began with is not there any more.", hint=_where_now(plan)
    )


def _base_again(plan: RunPlan, run_dir: Path) -> CheckpointEntry:
    beside = _beside(plan.base.path, plan, run_dir)
    tokenizer = next(filter(Path.exists, _beside(plan.base.tokenizer, plan, run_dir)), None)
    recorded = CheckpointEntry(
        name=plan.config.checkpoint, size=plan.config.size, path=Path(plan.base.path), tokenizer=tokenizer, source=run_dir
    )

    def fits(path: Path) -> bool:
        with suppress(MedsftError, OSError):
            return sampled_fingerprint(inspect_base(path, plan.base.iteration).weights) == plan.base.fingerprint
        return False

    for path in filter(fits, beside):
        return replace(recorded, path=path)
    with suppress(MedsftError):
        entry = load_settings().find_checkpoint(recorded.name, recorded.size)
        if fits(entry.base or entry.path):
            return replace(recorded, path=entry.base or entry.path, tokenizer=entry.tokenizer or tokenizer)
    for path in filter(Path.exists, beside):
        return replace(recorded, path=path)
    raise MismatchError(
        f"{plan.base.path}: the base model of this run is not there any more.",
        hint=_where_now(plan),
    )


def _where_now(plan: RunPlan) -> str:
    base = " --base BASE" if plan.base.adapter else ""
    return f"Say where it is now: medsft checkpoints add {plan.config.checkpoint} {format_number(plan.config.size)} PATH{base}"


def find_sets_again(plan: RunPlan, run_dir: Path) -> Path:
    """Return the folder of the tokenized sets of a plan as it is now; the recorded one where the set is not found."""
    candidates: Iterable[Path] = (*_beside(plan.train.folder, plan, run_dir), training_folder(plan.config).absolute())
    return next(filter(_has(plan.train.fingerprint), candidates), Path(plan.train.folder)).parent


def _has(fingerprint: str) -> Callable[[Path], bool]:
    def has(folder: Path) -> bool:
        with suppress(MedsftError, OSError):
            manifest = read_manifest(folder) if set_exists(folder) else None
            return manifest is not None and manifest.fingerprint == fingerprint
        return False

    return has
