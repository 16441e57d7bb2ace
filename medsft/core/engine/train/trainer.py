"""The training loop. Each line of `train` is one thing that happens in an iteration."""

from __future__ import annotations

import math
import signal
import time
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from medsft.core.config.eval_tasks import best_task
from medsft.core.engine.nn.transfer import to_device
from medsft.core.engine.parallel.master_weights import MasterWeights, allreduce_partial_gradients, local_gradient
from medsft.core.engine.parallel.mesh import Mesh
from medsft.core.engine.train.async_save import Saver
from medsft.core.engine.train.batches import Batcher, RankBatch, prefetch
from medsft.core.engine.train.checkpoint import TrainState, remove_old_checkpoints
from medsft.core.engine.train.head import LossTotals
from medsft.core.engine.train.optim import TIED, clip_gradients, set_learning_rate, squared_norm
from medsft.core.engine.train.peak_memory import peak_memory
from medsft.core.engine.train.questions import TaskAsker
from medsft.core.engine.train.step import Executor
from medsft.core.engine.train.validate import validate
from medsft.core.evaluation.measure import Share
from medsft.core.planning.plan import RunPlan
from medsft.core.planning.schedule import learning_rate
from medsft.core.run.events import EventWriter
from medsft.core.run.rundir import RunDir
from medsft.errors import TrainingError

_NAMED_DOCUMENTS = 20
_VALIDATION = ""
"""Stands for the validation set among the names of benchmarks, which are not empty."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """The figures of one iteration, equal on every rank after the reduction."""

    loss: float
    user_loss: float
    norm: float
    stop: bool
    """Somebody asked for a stop."""
    save: bool
    """Somebody asked for a checkpoint."""
    written: bool
    """Every rank has written its part of the checkpoint under way."""


@dataclass(slots=True)
class Trainer:
    """Everything a rank trains with."""

    plan: RunPlan
    run: RunDir
    mesh: Mesh
    masters: MasterWeights
    optimizer: torch.optim.Optimizer
    executor: Executor
    train_batches: Batcher
    val_batches: Batcher | None
    state: TrainState
    saver: Saver
    events: EventWriter | None
    """Only on the rank that reports."""
    tasks: tuple[TaskAsker, ...] = ()
    tied_copy: bool = False
    """Whether this stage's embedding is a copy of the first stage's."""
    stop_signal: bool = False
    _rates: deque[float] = field(default_factory=lambda: deque(maxlen=50))

    def train(self) -> bool:
        """Train to the end of the plan, until it no longer improves (`--patience`), or until a stop is asked for.

        Return whether the end was reached. Raises `TrainingError` before the weights are touched when a loss or gradient is
        not finite.
        """
        signal.signal(signal.SIGTERM, self._on_signal)
        total = self.plan.num_iterations
        self._phase("training")
        if self.validates_after(self.state.iteration) and self.state.iteration == 0:
            self._validate(measured=self._measured_before())
        if self._has_ended():  # ranks that were restarted after the last save
            return True
        for batch in self._batches(total):
            started = time.monotonic()
            iteration = self.state.iteration + 1
            lr = learning_rate(self.plan.config, iteration, total)
            result = self.step(batch, iteration, lr)
            self._count(batch)
            self._report_step(batch, result, lr, time.monotonic() - started)
            if result.written:
                self._finish_save()
            if self.validates_after(iteration):
                self._validate()
            ends = self._has_ended()
            if ends or result.stop or result.save or self._is_best() or iteration % self.plan.config.save_interval == 0:
                self._begin_save()
            if ends or result.stop:
                break
        self._finish_save()
        return self._has_ended()

    def _has_ended(self) -> bool:
        """Return whether all iterations are done, or as many validations as `--patience` says have brought nothing better."""
        patience = self.plan.config.patience
        worn_out = patience is not None and self.state.validations_since_best >= patience
        return self.state.iteration == self.plan.num_iterations or worn_out

    def _is_best(self) -> bool:
        """Return whether the validation after this iteration is the best one of the run so far."""
        return 0 < self.state.iteration == self.state.best_iteration

    def validates_after(self, iteration: int) -> bool:
        """Whether there is a validation after this iteration, of which 0 is before the first."""
        return (self.val_batches is not None or bool(self.tasks)) and self.plan.validates_after(iteration)

    def _measured_before(self) -> Collection[str]:
        """Return what an earlier start measured of the base model before it was ended. Every rank must call it."""
        found: list[str] = []
        if self.mesh.reports:
            view = self.run.view()
            found = [*([_VALIDATION] if view.eval_steps else []), *view.tasks]
        return self.mesh.gather(found)[0]  # type: ignore[return-value]

    def _on_signal(self, *_: object) -> None:
        self.stop_signal = True

    def _batches(self, total: int) -> Iterator[RankBatch]:
        return prefetch(self.train_batches, range(self.state.iteration, total))

    def step(self, batch: RankBatch, iteration: int, lr: float) -> StepResult:
        """Compute gradients, agree on them with all ranks, and update.

        Raises `TrainingError`, with the weights as they were, when the loss or the gradient is not finite.
        """
        sums = self.executor.train(batch, self._scales(batch))
        allreduce_partial_gradients(self.masters, self.mesh)
        allreduce_tied_gradients(self.masters, self.mesh, tied=self.plan.base.model.tie_embeddings)
        result = self._reduce(batch, sums)
        if not (math.isfinite(result.loss) and math.isfinite(result.norm)):
            self._refuse(batch, sums, result, iteration)
        clip_gradients(self.masters, result.norm, self.plan.config.clip_grad)
        set_learning_rate(self.optimizer, lr)
        self.optimizer.step()
        self.masters.copy_to_compute()
        self.masters.zero_grad()
        return result

    def _scales(self, batch: RankBatch) -> list[float]:
        """Return the factor of each micro-batch's sum(weight * nll) in the loss that is minimized.

        In the mean of means a micro-batch without weight counts as 0 (the original's mean of it is NaN), and the empty ones
        that a pipeline is filled up with do not count.
        """
        if (self.plan.config.rules.loss_norm or self.plan.config.loss_norm) == "microbatch":
            parts = sum(1 for micro in batch.micro_batches if micro.documents) * self.mesh.layout.dp
            return [1 / (micro.weight_sum * parts) if micro.weight_sum else 0.0 for micro in batch.micro_batches]
        scale = 1 / batch.weight_sum if batch.weight_sum else 0.0
        return [scale] * len(batch.micro_batches)

    def _reduce(self, batch: RankBatch, sums: LossTotals) -> StepResult:
        """Add up loss, norm and requests over all ranks in one message, so that all act alike."""
        wants = (self.run.requested("stop"), self.run.requested("save")) if self.mesh.reports else (False, False)
        requests = torch.tensor([wants[0] or self.stop_signal, wants[1], self.saver.is_written()], dtype=torch.float64)
        square = squared_norm(self.masters, self.mesh, tied_copy=self.tied_copy)
        sums_of_rank = torch.stack([sums.loss, sums.other_nll])
        values = torch.cat([sums_of_rank, to_device(requests, self.mesh.device), square])
        loss, other, stop, save, written, total = self.mesh.sum(values).tolist()  # the only wait for a GPU in an iteration
        others = batch.tokens - batch.supervised_tokens
        if save and self.mesh.reports:
            self.run.clear_request("save")
        return StepResult(
            loss=loss,
            user_loss=other / others if others else 0.0,
            norm=math.sqrt(total),
            stop=stop > 0,
            save=save > 0,
            written=written == self.mesh.layout.world,
        )

    def _refuse(self, batch: RankBatch, sums: LossTotals, result: StepResult, iteration: int) -> None:
        """Raise for an iteration whose loss or gradient is not finite, naming its documents."""
        named = {d for part in self.mesh.gather(sums.bad_documents()) for d in part}  # type: ignore[attr-defined]
        if not named:
            mine = [d for micro in batch.micro_batches for d in micro.documents]
            named = {d for part in self.mesh.gather(mine) for d in part}  # type: ignore[attr-defined]
        listed = ", ".join(str(d) for d in sorted(named)[:_NAMED_DOCUMENTS])
        more = f" and {len(named) - _NAMED_DOCUMENTS} more" if len(named) > _NAMED_DOCUMENTS else ""
        what = f"The loss is {result.loss}" if not math.isfinite(result.loss) else f"The gradient's norm is {result.norm}"
        raise TrainingError(
            f"{what} in iteration {iteration}; the weights were not touched. Documents (numbered from 0 in "
            f"{self.plan.train.folder}): {listed}{more}.",
            hint="Look at these documents with `medsft inspect`, or lower --lr; a resume goes on from the last checkpoint.",
        )

    def _count(self, batch: RankBatch) -> None:
        self.state.iteration += 1
        self.state.tokens += batch.tokens
        self.state.supervised_tokens += batch.supervised_tokens

    def _report_step(self, batch: RankBatch, result: StepResult, lr: float, seconds: float) -> None:
        memory = int(self.mesh.max(torch.tensor([peak_memory(self.mesh.device)], dtype=torch.float64)).item())
        if self.events is None:
            return
        self._rates.append(seconds)
        left = self.plan.num_iterations - self.state.iteration
        extra = {"loss_user": result.user_loss} if self.plan.config.loss_mask else {}
        self.events.write(
            "step",
            iteration=self.state.iteration,
            total=self.plan.num_iterations,
            loss=result.loss,
            lr=lr,
            grad_norm=result.norm,
            tokens=batch.tokens,
            supervised_tokens=batch.supervised_tokens,
            tokens_per_second=round(batch.tokens / seconds, 1),
            step_seconds=round(seconds, 4),
            eta_seconds=round(left * sum(self._rates) / len(self._rates), 1),
            memory_bytes=memory,
            epoch=round(self.state.iteration * self.plan.global_batch / self.plan.train.documents, 4),
            **extra,
        )

    def _validate(self, *, measured: Collection[str] = ()) -> None:
        """Validate, and ask the benchmarks, but for what is `measured` already; note whether this model is the best so far."""
        tasks = [task for task in self.tasks if task.task.name not in measured]
        validates = self.val_batches is not None and _VALIDATION not in measured
        if not (validates or tasks):
            return
        self._phase("evaluating")
        loss = self._validation_loss() if validates else None
        accuracies = {task.task.name: self._accuracy(task) for task in tasks}
        if self.plan.keeps_best and self.state.iteration:
            decides = best_task(self.plan.config.keep_best)
            self.state.note_validation(loss, None if decides is None else accuracies[decides])
        self._phase("training")

    def _validation_loss(self) -> float:
        """Return the loss on the validation set, and report it."""
        assert self.val_batches is not None
        started = time.monotonic()
        found = validate(self.executor, self.val_batches, self.mesh)
        if self.events:
            self.events.write(
                "eval",
                iteration=self.state.iteration,
                loss=found.loss,
                perplexity=found.perplexity,
                accuracy=found.accuracy,
                tokens=found.tokens,
                seconds=round(time.monotonic() - started, 2),
            )
        return found.loss

    def _accuracy(self, asker: TaskAsker) -> float:
        """Return the share of the questions of a benchmark that are answered rightly, and report it."""
        started = time.monotonic()
        right = asker.ask()
        if self.events:
            share = Share.of(right)
            self.events.write(
                "eval_task",
                iteration=self.state.iteration,
                task=asker.task.name,
                accuracy=share.value,
                interval=list(share.interval),
                questions=share.questions,
                seconds=round(time.monotonic() - started, 2),
            )
        return sum(right) / len(right)

    def _begin_save(self) -> None:
        """Start a checkpoint of the current iteration, after the one under way."""
        self._finish_save()
        self._phase("saving")
        self.saver.begin(self.state)
        self._phase("training")

    def _finish_save(self) -> None:
        """Complete the checkpoint under way, if there is one, and remove old ones."""
        saved = self.saver.finish()
        if saved is None or self.events is None:
            return
        remove_old_checkpoints(self.run, keep_last=self.plan.config.keep_last, best=saved.state.best_iteration)
        self.events.write(
            "checkpoint",
            iteration=saved.state.iteration,
            folder=saved.path.name,
            bytes=saved.bytes,
            seconds=round(saved.seconds, 2),
            stalled_seconds=round(saved.stalled_seconds, 2),
        )

    def _phase(self, name: str) -> None:
        if self.events:
            self.events.write("phase", name=name)


def allreduce_tied_gradients(masters: MasterWeights, mesh: Mesh, *, tied: bool) -> None:
    """Sum the gradients of a tied embedding's two copies, on the first and on the last pipeline stage."""
    if not (tied and mesh.embedding_group is not None and (mesh.is_first_stage or mesh.is_last_stage)):
        return
    for name in TIED:
        if name in masters.by_name:
            gradient = local_gradient(masters.by_name[name])
            total = gradient.float()  # the gradient itself where it is fp32
            dist.all_reduce(total, group=mesh.embedding_group)
            gradient.copy_(total)
