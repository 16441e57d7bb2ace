"""Checkpoints of a run: torch.distributed.checkpoint folders that any layout can read.

This module has the format: what is in a checkpoint, how it gets its name, how it is checked and read. `async_save` writes it.
It holds what is trained: the weights of `planning.trainable` as the optimizer updates them, their moments (of those in 8 bits
the codes, under the moment's name, and the scales), and random states. With an adapter its manifest says what adapter it is,
and of which base model.

    .iter_0000800.saving/ --all ranks write--> hashes --> config.json, manifest.json --fsync--> rename --> tracker

A checkpoint exists when its name does. Its manifest holds the size and SHA-256 of every file; loading checks them, and a
damaged checkpoint is named and the one before it is used.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner

from medsft.core.disk import probe, trouble
from medsft.core.engine.formats.dcp import MOMENTS, SCALE
from medsft.core.engine.nn.dtensor import local_part
from medsft.core.engine.parallel.master_weights import MasterWeights
from medsft.core.engine.parallel.mesh import Mesh
from medsft.core.engine.train.adamw8bit import AdamW8bit, new_state, reblock, saved_scales
from medsft.core.engine.train.adapters import adapter_differences
from medsft.core.engine.train.arithmetic import arithmetic
from medsft.core.files import sealed, sync_entry
from medsft.core.models.config import ModelConfig, to_hf_config
from medsft.core.models.run_folder import MANIFEST_NAME, read_manifest
from medsft.core.run.integrity import find_good, hash_file
from medsft.core.run.rundir import RunDir
from medsft.errors import MismatchError

_READERS = 4


@dataclass(slots=True)
class TrainState:
    """What a resume needs beside weights and moments."""

    iteration: int = 0
    """Completed iterations; the data position follows from it."""
    tokens: int = 0
    supervised_tokens: int = 0
    best_iteration: int = 0
    """After which the model was best by `best_by`, where the run keeps the best; 0: there was no validation yet."""
    best_loss: float | None = None
    """On the validation set, of that model."""
    validations_since_best: int = 0
    best_by: str = "loss"
    """The `--keep_best` by which that is told."""
    best_accuracy: float | None = None
    """In the benchmark that decides, of the best model."""

    def note_validation(self, loss: float | None, accuracy: float | None = None) -> None:
        """Count a validation after `iteration`. A higher accuracy is better, where one decides; else, and of equal ones, a
        lower loss; of equal validations the first is the best. A loss that is not finite is no loss.
        """
        loss = loss if loss is not None and math.isfinite(loss) else None
        if _goodness(loss, accuracy) > _goodness(self.best_loss, self.best_accuracy):
            self.best_iteration, self.best_loss, self.best_accuracy = self.iteration, loss, accuracy
            self.validations_since_best = 0
        else:
            self.validations_since_best += 1

    def compare_by(self, measure: str) -> None:
        """Begin anew to look for the best model where another `--keep_best` decided until now."""
        if self.best_by != measure:
            self.best_by = measure
            self.best_iteration, self.best_loss, self.best_accuracy, self.validations_since_best = 0, None, None, 0


def _goodness(loss: float | None, accuracy: float | None) -> tuple[float, float]:
    """Return a pair that is larger for a better model."""
    return -math.inf if accuracy is None else accuracy, -math.inf if loss is None else -loss


def commit(
    run: RunDir,
    aside: Path,
    final: Path,
    state: TrainState,
    model: ModelConfig,
    identity: str,
    files: dict[str, dict[str, Any]],
    adapter: Mapping[str, Any] | None = None,
    *,
    dtype: str = "float32",
) -> list[str]:
    """Complete the folder, give it its name, then move the tracker. Returns what went wrong. Reporting rank only.

    `dtype` is torch's name of the format of the weights in it.
    """
    try:
        config = aside / "config.json"
        config.write_text(json.dumps(to_hf_config(model, dtype=dtype), indent=1) + "\n")
        for path in (aside / ".metadata", config):
            files[path.name] = hash_file(path)
        manifest = {"iteration": state.iteration, "identity": identity, "state": _state_fields(state), "files": files}
        manifest |= {"arithmetic": arithmetic()} | ({"adapter": dict(adapter)} if adapter else {})
        (aside / MANIFEST_NAME).write_text(sealed(manifest))
        for path in (config, aside / MANIFEST_NAME, aside):
            sync_entry(path)
        replaced = run.discarded_path(state.iteration, "replaced")
        if final.exists():
            final.rename(replaced)
        aside.rename(final)
        sync_entry(run.path)
        run.set_latest_checkpoint(state.iteration)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        return [describe(error, run.path)]
    return []


def _state_fields(state: TrainState) -> dict[str, Any]:
    """Return the fields for the manifest: without a validation, or a benchmark, those that every version of medsft reads."""
    left_out = set[str]()
    if not (state.best_iteration or state.validations_since_best):
        left_out = {"best_iteration", "best_loss", "validations_since_best", "best_by", "best_accuracy"}
    elif state.best_accuracy is None:
        left_out = {"best_by", "best_accuracy"}
    return {name: value for name, value in asdict(state).items() if name not in left_out}


def describe(error: BaseException, folder: Path) -> str:
    """Return why `folder` could not be written.

    An error that came from another rank, or out of torch's file format, does not name the disk's trouble: `probe` looks for it.
    """
    found = trouble(error, folder) or probe(folder)
    if found is not None:
        return found.message
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return f"{cause.strerror} ({cause.filename})" if cause.filename else cause.strerror
        cause = cause.__cause__ or cause.__context__
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def tensors(masters: MasterWeights, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the trained weights and their moments by name; moments that do not exist yet are made, as zeros."""
    ensure_moments(masters, optimizer)
    result: dict[str, Any] = {"model": {name: p.detach() for name, p in masters.by_name.items()}}
    for part in (*MOMENTS, *(moment + SCALE for moment in MOMENTS)):
        found = {name: optimizer.state[p][part] for name, p in masters.by_name.items() if part in optimizer.state[p]}
        if found or part in MOMENTS:
            result[part] = found
    return result


def bytes_of(masters: MasterWeights, optimizer: torch.optim.Optimizer) -> int:
    """Return the size of what this rank has of `tensors`."""
    return sum(local_part(tensor).nbytes for part in tensors(masters, optimizer).values() for tensor in part.values())


def ensure_moments(masters: MasterWeights, optimizer: torch.optim.Optimizer, *, fill: bool = True) -> None:
    """Give every master its Adam state: zeros, as the first update would, or with `fill=False` memory that a load will fill."""
    make = torch.zeros_like if fill else torch.empty_like
    for parameter in masters.by_name.values():
        if optimizer.state[parameter]:
            continue
        if isinstance(optimizer, AdamW8bit):
            optimizer.state[parameter] = new_state(parameter)
        else:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                **{moment: make(parameter, memory_format=torch.preserve_format) for moment in MOMENTS},
            }


def random_state(mesh: Mesh) -> dict[str, Any]:
    """Return the state of this rank's generators under its number. A rank that has no saved state keeps its seed."""
    state: dict[str, Any] = {"torch": torch.get_rng_state()}
    if mesh.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state()
    return {f"rank_{mesh.rank}": state}


def hash_own_files(folder: Path, mesh: Mesh) -> dict[str, dict[str, Any]]:
    """Return size and SHA-256 of the files that this rank wrote."""
    return {path.name: hash_file(path) for path in folder.glob(f"__{mesh.rank}_*.distcp")}


def find_good_checkpoint(run: RunDir, mesh: Mesh) -> tuple[int | None, list[str]]:
    """Return (iteration of the latest undamaged checkpoint or None, a line for each damaged one). Every rank must call it.

    One rank reads and hashes for all: on a shared folder the others would read the same bytes again.
    """
    found = find_good(run) if mesh.reports else None
    return mesh.gather(found)[0]  # type: ignore[return-value]


def load_checkpoint(
    path: Path,
    mesh: Mesh,
    masters: MasterWeights,
    optimizer: torch.optim.Optimizer,
    *,
    identity: str,
    trainable: Collection[str],
    adapter: Mapping[str, Any] | None = None,
) -> TrainState:
    """Fill masters, moments and random states from a checkpoint written at any layout, and return the rest.

    Raises `MismatchError` when it belongs to another plan or to another `adapter` (what its manifest must say of it), or does
    not hold exactly the weights named in `trainable`.
    """
    manifest = read_manifest(path)
    if manifest["identity"] != identity:
        raise MismatchError(f"{path} belongs to plan {manifest['identity']}, this run has {identity}.")
    if differing := adapter_differences(manifest.get("adapter") or {}, adapter or {}):
        raise MismatchError(f"{path} holds another adapter than this run trains. {'; '.join(differing)}.")
    keys = FileSystemReader(path).read_metadata().state_dict_metadata
    saved = {key.removeprefix("model.") for key in keys if key.startswith("model.")}
    if differing := sorted(saved.symmetric_difference(trainable)):
        raise MismatchError(
            f"{path} holds {len(saved)} trained weights, this run trains {len(trainable)}; only one of them has {differing[0]}."
        )
    ensure_moments(masters, optimizer, fill=False)
    wanted = tensors(masters, optimizer)
    sizes = {key: entry.size for key, entry in keys.items() if isinstance(entry, TensorStorageMetadata)}
    divided_otherwise = _make_room_for_scales(wanted, masters, sizes)
    dcp.load(wanted, storage_reader=_Reader(path))
    for name, moment, scales in divided_otherwise:
        reblock(masters.by_name[name], optimizer.state[masters.by_name[name]], moment, scales)
    state = TrainState(**manifest["state"])
    for parameter in masters.by_name.values():
        optimizer.state[parameter]["step"].fill_(state.iteration)
    _restore_random(path, mesh, keys)
    return state


def _make_room_for_scales(
    wanted: Mapping[str, Any], masters: MasterWeights, saved: Mapping[str, Sequence[int]]
) -> list[tuple[str, str, torch.Tensor]]:
    """Put room into `wanted` for saved scales of another shape than this layout's, and return (weight, moment, room) of each.

    They are of a matrix whose columns were divided over ranks otherwise. `saved` has the shapes in the checkpoint.
    """
    made = []
    for moment in MOMENTS:
        scales = wanted.get(moment + SCALE, {})
        for name in scales:
            shape = tuple(saved[f"{moment}{SCALE}.{name}"])
            if shape != tuple(scales[name].shape):
                scales[name] = saved_scales(masters.by_name[name], shape)
                made.append((name, moment, scales[name]))
    return made


class _Reader(FileSystemReader):
    """Reads with several threads: one thread copies more slowly than a disk or the page cache delivers."""

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> torch.futures.Future[None]:
        """Fill the tensors of `plan`, one part in each thread: they touch different ones."""
        parts = [replace(plan, items=plan.items[first::_READERS]) for first in range(_READERS)]
        with ThreadPoolExecutor(_READERS, thread_name_prefix="reading") as pool:
            read = super().read_data
            for future in [pool.submit(read, part, planner) for part in parts]:
                future.result()
        done: torch.futures.Future[None] = torch.futures.Future()
        done.set_result(None)
        return done


def _restore_random(path: Path, mesh: Mesh, keys: Collection[str]) -> None:
    mine = f"random.rank_{mesh.rank}."
    if not any(key.startswith(mine) for key in keys):
        return
    wanted: dict[str, Any] = {"random": random_state(mesh)}
    # Alone: at another layout some ranks have nothing to restore and do not come here.
    dcp.load(wanted, storage_reader=FileSystemReader(path), no_dist=True)
    state: Mapping[str, Any] = wanted["random"][f"rank_{mesh.rank}"]
    torch.set_rng_state(state["torch"])
    if mesh.device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def remove_old_checkpoints(run: RunDir, *, keep_last: int, best: int = 0) -> None:
    """Remove all before the latest `keep_last` whole checkpoints (0 keeps all), and what a killed save or removal left behind.

    That of iteration `best` stays.

    A checkpoint is renamed before its files are removed: none keeps its name with some of its files. Reporting rank only.
    """
    kept = run.whole_checkpoints()[-keep_last:] if keep_last > 0 else []
    for iteration in run.checkpoints() if kept else []:
        if iteration < kept[0] and iteration != best:
            with suppress(OSError):
                run.checkpoint_path(iteration).rename(run.discarded_path(iteration, "removed"))
    for rest in run.unfinished_saves():
        if rest.is_dir():
            shutil.rmtree(rest, ignore_errors=True)
        else:
            rest.unlink(missing_ok=True)  # a file that had the name of a checkpoint
