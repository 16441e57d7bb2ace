"""A rehearsal before a long run: the real base model, flags and heaviest documents, for a few iterations, a kill and a resume.

    iteration   1  2      3  4             5  6     then kill -9; resume from the save and do 5 and 6 again, and once more for
    documents   heaviest  typical          typical  each other layout that was asked for
                                 evaluate, save

Losses of a resume must be bit for bit those before the kill on the same layout, and equal but for rounding on another. What was
measured gives the forecast: iterations 3 and 4 the speed, what 5 and 6 take longer the cost of the save that is written
meanwhile, and all of them the peak of memory. Everything is removed at the end.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import psutil

from medsft.core.config.eval_tasks import DEFAULT_LIMIT
from medsft.core.config.run_config import RunConfig
from medsft.core.data.dataset.copy_documents import copy_documents
from medsft.core.data.dataset.dataset import validation_folder_of
from medsft.core.disk import writing_to
from medsft.core.evaluation.tasks.of_run import plan_run
from medsft.core.files import write_atomically
from medsft.core.planning.folders import free_bytes
from medsft.core.planning.optimizer import ADAMW8BIT
from medsft.core.planning.plan import RunPlan
from medsft.core.planning.planner import make_plan, replan
from medsft.core.planning.schedule import most_kept, num_saves
from medsft.core.planning.selection import Split, open_splits, order_of
from medsft.core.run.events import Event, EventReader
from medsft.core.run.launch import start
from medsft.core.run.rundir import RunDir
from medsft.core.settings import Settings
from medsft.errors import ConfigError, ExitCode, Failure, LaunchError, MedsftError, Problem, ReportedError

ITERATIONS = 6
"""How many the rehearsal trains, of which 1 to `_HEAVY` are on the heaviest documents and `_SAVED_AT` is saved."""
_HEAVY, _SAVED_AT = 2, 4
FORWARD_SHARE = 1 / 3
"""Of the work of a training step that a validation does: forward, but not twice as much backward."""
_CANDIDATES = 200
"""Batches of the run among which the heaviest and the typical ones are looked for."""
_NEVER_REACHED = 1000
"""A rehearsal is killed, and must not come to its end and export before."""
_OTHER_LAYOUT_TOLERANCE = {"fp32": 1e-4, "bf16": 0.02}
"""Of a loss on another layout, where sums are taken in another order: bf16 keeps 8 bits of each, as do 8-bit moments."""
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """A resume that was tried."""

    layout: str
    difference: float
    """Largest difference of a loss from the one before the kill."""
    allowed: float
    """0 on the same layout."""

    @property
    def ok(self) -> bool:
        """Whether the losses are the same."""
        return self.difference <= self.allowed


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What was measured, and what it says of the run."""

    identity: str
    """Of the plan of the run."""
    memory_bytes: int
    """Peak of the rank that uses most, with the heaviest documents while a checkpoint is written."""
    device_memory: int
    tokens_per_second: float
    checkpoint_bytes: int
    save_seconds: float
    """Until a checkpoint is durable."""
    save_cost_seconds: float
    """By which a checkpoint delays the training that goes on meanwhile."""
    start_seconds: float
    """From the launch to the first iteration."""
    eval_seconds: float
    """Of one validation of the whole validation set; 0 without one."""
    resumes: tuple[Resumed, ...]
    forecast_seconds: float
    forecast_disk_bytes: int
    disk_free: int

    @property
    def problems(self) -> list[str]:
        """What would go wrong, one line each; empty when the run can start."""
        lines = [f"{r.layout}: a loss after the resume differs by {r.difference:.3g}" for r in self.resumes if not r.ok]
        if self.memory_bytes > self.device_memory:
            lines.append("a rank uses more memory than the device has for it")
        if self.forecast_disk_bytes > self.disk_free:
            lines.append("the disk is too small for the checkpoints to come")
        return lines


def read_rehearsal(plan: RunPlan) -> Rehearsal | None:
    """Return the rehearsal of this very plan, None when there is none."""
    try:
        raw = json.loads(RunDir(Path(plan.run_dir)).rehearsal_path.read_text(encoding="utf-8"))
        rehearsal = Rehearsal(**raw | {"resumes": tuple(Resumed(**resumed) for resumed in raw["resumes"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return rehearsal if rehearsal.identity == plan.identity else None


def rehearse(
    config: RunConfig,
    settings: Settings,
    *,
    at: Sequence[Mapping[str, int]] = (),
    on_status: Callable[[str], None] = lambda _: None,
) -> Rehearsal:
    """Rehearse a run whose sets are tokenized, keep the result beside its plan, and return it.

    `at` are changes of the layout (`tp`, `pp`, ...) to resume with. `on_status` gets a line for each stage.
    Raises what `plan_run` raises, and the error of a rehearsal run that fails.
    """
    if config.nodes > 1:
        raise ConfigError([Problem("--nodes", "a rehearsal runs on one node", "Rehearse with the --tp and --pp of one node.")])
    plan = plan_run(config, settings)
    parent = Path(plan.run_dir).parent
    with _temporary_folder(parent) as folder:
        small = _small_plan(plan, config, settings, folder)
        # As many processes as the layout needs, unless a person has said how many.
        processes = {"nproc_per_node": config.nproc_per_node}
        others = [replan(small, run_dir=Path(small.run_dir), changes=processes | dict(change)) for change in at]
        on_status(f"training {ITERATIONS} iterations at {small.layout}")
        first = _run_until(small)
        resumes = []
        for again in [small, *others]:
            on_status(f"killed; resuming at {again.layout}")
            resumes.append(_compare(first, _run_until(again), again, same=again.layout == small.layout))
        result = _measure(plan, small, first, resumes)
    write_atomically(RunDir(Path(plan.run_dir)).rehearsal_path, json.dumps(asdict(result), indent=1) + "\n")
    return result


@contextmanager
def _temporary_folder(parent: Path) -> Iterator[Path]:
    """A folder on the disk of the runs, for the speed of saves is a part of the result."""
    with writing_to(parent, ExitCode.LAUNCH):
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".rehearsal-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _small_plan(plan: RunPlan, config: RunConfig, settings: Settings, folder: Path) -> RunPlan:
    """Return the plan of the rehearsal run: the run's own, on a set whose order brings the chosen documents in turn."""
    data = folder / "tokenized" / config.run_name
    train, val = open_splits(plan)
    copy_documents(train.data, train.subset.at(_chosen_positions(plan, train)), data)
    if val is not None:
        first = np.arange(min(plan.global_batch, len(val.subset)))
        copy_documents(val.data, val.subset.at(first), validation_folder_of(data))
    small = replace(
        config,
        data=(),
        val=(),
        group_key=None,
        tokenized_data_dir=data.parent,
        save_checkpoint_dir=folder / "runs",
        global_batch=plan.global_batch,
        iters=max(plan.num_iterations, _NEVER_REACHED),
        max_iters=None,
        save_interval=_SAVED_AT,
        eval_interval=_SAVED_AT,
        keep_last=0,
        keep_best="none",
        eval_task=(),
        eval_limit=DEFAULT_LIMIT,
        patience=None,
        tp=plan.layout.tp,
        pp=plan.layout.pp,
        nproc_per_node=plan.nproc_per_node,
        micro_batch=plan.micro_batch,
        recompute=plan.recompute,
    )
    return make_plan(small, settings)


def _chosen_positions(plan: RunPlan, train: Split) -> np.ndarray:
    """Return positions in the subset of the run, int64 [ITERATIONS * plan.global_batch].

    Iterations 1 and 2 of a run on them train on the run's batch with most tokens, the others on batches nearest to the mean.
    """
    batches = [train.order.batch(iteration) for iteration in range(min(plan.num_iterations, _CANDIDATES))]
    tokens = np.array([train.subset.lengths[batch].sum() for batch in batches])
    typical = np.argsort(np.abs(tokens - tokens.mean()), kind="stable")
    wanted = [int(tokens.argmax())] * _HEAVY + [int(typical[i % len(typical)]) for i in range(ITERATIONS - _HEAVY)]
    positions = np.empty(ITERATIONS * plan.global_batch, np.int64)
    small = replace(order_of(plan.config, len(positions)), global_batch=plan.global_batch)
    for iteration, number in enumerate(wanted):
        positions[small.batch(iteration)] = batches[number]
    return positions


@dataclass(frozen=True, slots=True)
class _Log:
    """The events of one start."""

    began: float
    events: tuple[Event, ...]

    def steps(self) -> dict[int, Event]:
        return {int(event.data["iteration"]): event for event in self.events if event.kind == "step"}

    def last(self, kind: str) -> Event | None:
        return next((event for event in reversed(self.events) if event.kind == kind), None)


def _run_until(plan: RunPlan) -> _Log:
    """Start the rehearsal run, wait until its last iteration is logged, and kill it as a power cut would.

    Raises the error that the run ended with.
    """
    run = RunDir(Path(plan.run_dir))
    reader = EventReader(run.events_path)
    reader.read()
    began = time.time()
    events: list[Event] = []
    start(plan)
    try:
        while not _complete(events):
            alive = run.alive()
            events += reader.read()
            if not alive or any(event.kind == "failed" for event in events):
                events += reader.read()
                raise _failure(run, events)
            time.sleep(_POLL_SECONDS)
    finally:
        _kill(run)
    _forget_later_saves(run)
    return _Log(began, tuple(events))


def _complete(events: Sequence[Event]) -> bool:
    """Tell whether all iterations are done, and the checkpoint that a resume starts from, which may take longer, is written."""
    done = any(event.kind == "step" and event.data["iteration"] == ITERATIONS for event in events)
    resumed = any(event.kind == "run_started" and event.data["resumed"] for event in events)
    return done and (resumed or any(event.kind == "checkpoint" for event in events))


def _failure(run: RunDir, events: Sequence[Event]) -> MedsftError:
    failed = next((event.data for event in events if event.kind == "failed"), None)
    if failed is None:
        return LaunchError("The rehearsal's processes exited without reporting an error.")
    failure = Failure.from_json(failed)
    return ReportedError(replace(failure, reason=f"The rehearsal failed: {failure.reason}"))


def _kill(run: RunDir) -> None:
    """Kill the supervisor and all that it has started, with SIGKILL, and wait until they are gone."""
    if not run.alive():
        return
    supervisor = psutil.Process(int(json.loads(run.process_path.read_text())["pid"]))
    supervisor.suspend()  # so that it starts nothing while its children are listed
    processes = [supervisor, *supervisor.children(recursive=True)]
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=30)


def _forget_later_saves(run: RunDir) -> None:
    """Leave one checkpoint to resume from, however far a fast run came before it was killed."""
    for iteration in run.checkpoints():
        if iteration > _SAVED_AT:
            shutil.rmtree(run.checkpoint_path(iteration))
    run.set_latest_checkpoint(_SAVED_AT)


def _compare(first: _Log, again: _Log, plan: RunPlan, *, same: bool) -> Resumed:
    before, after = first.steps(), again.steps()
    repeated = [number for number in after if number in before]
    difference = max(abs(before[number].data["loss"] - after[number].data["loss"]) for number in repeated)
    coarser = "bf16" if plan.config.optimizer == ADAMW8BIT else plan.precision
    allowed = 0.0 if same else _OTHER_LAYOUT_TOLERANCE[coarser]
    return Resumed(layout=str(plan.layout), difference=difference, allowed=allowed)


def _peak_memory(plan: RunPlan, steps: Mapping[int, Event], saved: Event) -> int:
    """Return the peak of a rank: what was seen, or what would be when the heaviest batch meets a save that is being written.

    On a CPU the copy that is written lies in the same memory; a save that stops training for half its time or more made none.
    """
    seen = {number: int(step.data["memory_bytes"]) for number, step in steps.items()}
    before = max(seen[number] for number in range(1, _SAVED_AT + 1))
    copies = plan.estimates.device_kind == "cpu" and saved.data["stalled_seconds"] < saved.data["seconds"] / 2
    return max(*seen.values(), before + int(saved.data["bytes"]) // plan.layout.world * copies)


def _measure(plan: RunPlan, small: RunPlan, log: _Log, resumes: Sequence[Resumed]) -> Rehearsal:
    """Turn the events into the forecast of the real run."""
    steps = log.steps()
    timed = [steps[number].data for number in range(_HEAVY + 1, _SAVED_AT + 1)]
    rate = sum(step["tokens"] for step in timed) / sum(step["step_seconds"] for step in timed)
    saved, evaluated = log.last("checkpoint"), log.last("eval")
    assert saved is not None, "`_run_until` waits for it"
    save_seconds = float(saved.data["seconds"])
    eval_seconds = 0.0
    if evaluated is not None and plan.val is not None and small.val is not None:
        eval_seconds = float(evaluated.data["seconds"]) * plan.val.labels / small.val.labels
    eval_seconds += FORWARD_SHARE * sum(task.tokens for task in plan.tasks) / rate
    first = next((event for event in log.events if event.kind == "eval" and event.data["iteration"] == 0), None)
    before = float(first.data["seconds"]) if first else 0.0
    start_seconds = steps[1].time - steps[1].data["step_seconds"] - before - log.began
    meanwhile = [step for number, step in steps.items() if number > _SAVED_AT]
    undelayed = sum(step.data["tokens"] for step in meanwhile) / rate
    evaluating = float(evaluated.data["seconds"]) if evaluated else 0.0
    save_cost = max(0.0, meanwhile[-1].time - steps[_SAVED_AT].time - evaluating - undelayed)
    config, count = plan.config, plan.num_iterations
    saves = num_saves(count, config.save_interval)
    evals = plan.num_validations if plan.val is not None or plan.tasks else 0
    training = plan.train.labels * plan.epochs / rate
    # The last checkpoint is waited for; then the export starts a process, reads it and writes the model.
    ending = save_seconds + start_seconds + save_seconds
    checkpoint = int(saved.data["bytes"])
    kept = most_kept(config, count, eval_interval=plan.eval_interval if plan.keeps_best else None, ends=plan.epoch_ends)
    exported = plan.estimates.disk_needed - kept * plan.estimates.checkpoint_bytes
    return Rehearsal(
        identity=plan.identity,
        memory_bytes=_peak_memory(plan, steps, saved),
        device_memory=plan.estimates.device_memory,
        tokens_per_second=rate,
        checkpoint_bytes=checkpoint,
        save_seconds=save_seconds,
        save_cost_seconds=save_cost,
        start_seconds=start_seconds,
        eval_seconds=eval_seconds,
        resumes=tuple(resumes),
        forecast_seconds=start_seconds + training + (saves - 1) * save_cost + evals * eval_seconds + ending,
        forecast_disk_bytes=kept * checkpoint + max(0, exported),
        disk_free=free_bytes(Path(plan.run_dir)),
    )
