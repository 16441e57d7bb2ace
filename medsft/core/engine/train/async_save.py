"""Writes checkpoints while training goes on.

    begin: copy the shards --> a thread writes and hashes them --> every rank is done --> finish: name, tracker

Training waits only for the copy, on a GPU only before it updates what is copied. Where memory does not allow a second copy,
`begin` waits until all is written. The tracker moves when the files are durable, never before.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from medsft.core.engine.parallel.master_weights import MasterWeights
from medsft.core.engine.parallel.mesh import Mesh
from medsft.core.engine.train.checkpoint import TrainState, bytes_of, commit, describe, hash_own_files, random_state, tensors
from medsft.core.engine.train.host_copies import Content, HostCopies
from medsft.core.host_memory import free_memory
from medsft.core.models.config import ModelConfig
from medsft.core.run.rundir import RunDir
from medsft.errors import TrainingError

_HEADROOM = 1.5
"""A copy is made when this many times its size is free, of the machine or of what its container is allowed."""
_PINNED_HEADROOM = 2.0
"""A copy in pinned memory, which stays and which the system cannot take back, when so many times its size is free."""

_FAILURES = (Exception, CheckpointException)
"""What torch raises where a rank could not write. `CheckpointException` is not a subclass of `Exception`."""

Hashes = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Saved:
    """What a save left on disk."""

    path: Path
    state: TrainState
    bytes: int
    seconds: float
    """From the begin of the save until it was durable."""
    stalled_seconds: float
    """Of these, how long training waited."""


@dataclass(slots=True)
class _Writing:
    """A save under way."""

    state: TrainState
    aside: Path
    started: float
    stalled: float
    written: Future[Hashes]


class Saver:
    """The checkpoints of one rank. All its methods but `is_written` must be called by every rank."""

    def __init__(
        self,
        run: RunDir,
        mesh: Mesh,
        masters: MasterWeights,
        optimizer: torch.optim.Optimizer,
        *,
        model: ModelConfig,
        identity: str,
        adapter: Mapping[str, Any] | None = None,
    ) -> None:
        self._run, self._mesh, self._masters, self._optimizer = run, mesh, masters, optimizer
        self._model, self._identity, self._adapter = model, identity, adapter
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saving")
        # A group of its own, so that the messages of a save are not mixed with those of training.
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._writing: _Writing | None = None
        self._copies = HostCopies(mesh.device)
        optimizer.register_step_pre_hook(lambda *_: self._wait_for_copy())

    def begin(self, state: TrainState) -> None:
        """Start to save the checkpoint of `state.iteration`. One that is under way must have been finished."""
        assert self._writing is None
        started = time.monotonic()
        aside = self._run.saving_path(state.iteration)
        problem = None
        if self._mesh.reports:
            shutil.rmtree(aside, ignore_errors=True)
            try:
                aside.mkdir()  # without its parents: a run whose folder is gone must not leave a new one
            except OSError as error:
                problem = describe(error, self._run.path)
        if problems := [p for p in self._mesh.gather(problem) if p]:
            self._give_up(state.iteration, aside, str(problems[0]))
        try:
            written = self._write(aside)
        except _FAILURES as error:  # `finish` tells the other ranks, which may have begun to write
            written = Future()
            written.set_exception(error)
        self._writing = _Writing(replace(state), aside, started, time.monotonic() - started, written)

    def _write(self, aside: Path) -> Future[Hashes]:
        """Start to write this rank's part, or write all of it where memory does not allow a copy."""
        content = {**tensors(self._masters, self._optimizer), "random": random_state(self._mesh)}
        writer = FileSystemWriter(aside, single_file_per_rank=True, thread_count=1, sync_files=True)
        copied, pinned = self._memory_allows()
        if not copied:
            dcp.save(content, storage_writer=writer, process_group=self._group)
            return self._thread.submit(hash_own_files, aside, self._mesh)
        copy = self._copies.begin(content, pinned=pinned)
        return self._thread.submit(self._write_copy, copy, writer, aside)

    def _write_copy(self, copy: Future[Content], writer: FileSystemWriter, aside: Path) -> Hashes:
        dcp.save(dict(copy.result()), storage_writer=writer, process_group=self._group)
        return hash_own_files(aside, self._mesh)

    def _wait_for_copy(self) -> None:
        """Return when the save under way has copied what the optimizer is about to change."""
        began = time.monotonic()
        self._copies.wait()
        if self._writing is not None:
            self._writing.stalled += time.monotonic() - began

    def _memory_allows(self) -> tuple[bool, bool]:
        """Return the same answers on every rank: whether each can hold its shards twice, and whether in pinned memory."""
        size = bytes_of(self._masters, self._optimizer)
        size = 0 if self._copies.are_kept else size
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", self._mesh.layout.world))
        free = free_memory() / ranks
        scarce = [float(free < headroom * size) for headroom in (_HEADROOM, _PINNED_HEADROOM)]
        scarce = self._mesh.sum(torch.tensor(scarce, device=self._mesh.device)).tolist()
        return scarce[0] == 0, scarce[1] == 0

    def is_written(self) -> bool:
        """Tell whether this rank has written its part of the save under way."""
        return self._writing is not None and self._writing.written.done()

    def finish(self) -> Saved | None:
        """Wait for the save under way, give it its name and move the tracker; None when there is none.

        Raises `TrainingError` on every rank when one could not write (a full disk); nothing that was there before is lost.
        """
        if self._writing is None:
            return None
        writing, self._writing = self._writing, None
        waited = time.monotonic()
        problem, hashes = None, {}
        try:
            hashes = writing.written.result()
        except _FAILURES as error:  # whatever the storage raised: all ranks must learn of it, or they wait for ever
            problem = describe(error, writing.aside)
        answers: list[Any] = self._mesh.gather((problem, hashes))
        problems = [answer[0] for answer in answers if answer[0]]
        final = self._run.checkpoint_path(writing.state.iteration)
        files = {name: record for answer in answers for name, record in answer[1].items()}
        if not problems and self._mesh.reports:
            dtype = next((str(p.dtype).removeprefix("torch.") for p in self._masters.by_name.values()), "float32")
            content = (writing.state, self._model, self._identity, files, self._adapter)
            problems = commit(self._run, writing.aside, final, *content, dtype=dtype)
        problems = [p for answer in self._mesh.gather(problems) for p in answer]  # type: ignore[attr-defined]
        if problems:
            self._give_up(writing.state.iteration, writing.aside, problems[0])
        now = time.monotonic()
        stalled = writing.stalled + now - waited
        size = sum(record["bytes"] for record in files.values())
        return Saved(final, writing.state, size, now - writing.started, stalled)

    def _give_up(self, iteration: int, aside: Path, problem: str) -> NoReturn:
        if self._mesh.reports:
            shutil.rmtree(aside, ignore_errors=True)
        kept = self._run.checkpoints()
        left = f"The last good checkpoint is kept: iteration {kept[-1]}." if kept else "There is no checkpoint yet."
        raise TrainingError(
            f"The checkpoint of iteration {iteration} could not be saved. {problem}",
            hint=f"{left} Make room and run it again: medsft resume {self._run.path}",
        )
