"""A plan in words: the rows that `medsft plan` and the wizard show. A front end only lays them out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medsft.core.config.eval_tasks import best_task
from medsft.core.text.adapter import adapter_text, alternatives_rows, formats_text, trained_text
from medsft.core.units import byte_size, count, counted, duration, short_count

if TYPE_CHECKING:
    from medsft.core.forecast import Forecast
    from medsft.core.planning.plan import DatasetStats, MixturePart, RunPlan
    from medsft.core.planning.tasks import TaskPlan
    from medsft.core.rehearsal import Rehearsal

MEMORY_PARTS = ("weights", "gradients", "optimizer", "activations", "process")
"""Fields of a `MemoryEstimate` in the order in which they are shown."""


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that a plan says."""

    label: str
    value: str
    note: str = ""
    """What explains the value, where there is room."""
    brief: bool = False
    """Whether a narrow place shows it, too."""

    @property
    def text(self) -> str:
        """Value and note."""
        return f"{self.value} ({self.note})" if self.note else self.value


def plan_rows(plan: RunPlan, forecast: Forecast | None, disk_free: int, *, show_path: Callable[[str], str] = str) -> list[Row]:
    """Return everything that a person decides by.

    `disk_free` is in bytes, where the run's folder will be; `show_path` shortens a path for the place that shows it.
    """
    estimates, memory = plan.estimates, plan.estimates.memory
    base = f"{plan.base.kind}, {short_count(plan.base.model.num_parameters())} parameters"
    start = plan.base.adapter
    nodes = f" on each of {plan.config.nodes} nodes" if plan.config.nodes > 1 else ""
    each = counted(plan.micro_batch, "document")
    return [
        Row("run", show_path(plan.run_dir)),
        Row("base model", show_path(plan.base.path), base),
        *([Row("trained on from", show_path(start.path), "an adapter of the base model")] if start else []),
        Row("new tokens", ", ".join(plan.base.added_tokens) or "none"),
        _data("training set", plan.train),
        *_mixture(plan.train),
        _data("validation set", plan.val, _held_out(plan)) if plan.val else Row("validation set", "none"),
        Row(
            "iterations",
            f"{count(plan.num_iterations)} of {counted(plan.global_batch, 'document')}",
            counted(plan.epochs, "epoch"),
            brief=True,
        ),
        *(Row("benchmark" if task is plan.tasks[0] else "", task_text(task)) for task in plan.tasks),
        *_validations(plan),
        _checkpoints(plan),
        *_answer_tokens(plan),
        Row("layout", str(plan.layout), f"{counted(plan.nproc_per_node, 'process', 'processes')}{nodes}", brief=True),
        Row("micro-batches", f"{plan.num_micro_batches} of about {each}", "on each rank and iteration", brief=True),
        Row("precision", plan.precision, formats_text(plan), brief=True),
        *_less_memory(plan),
        *_training(plan),
        Row("device", estimates.device_name, estimates.device_kind),
        Row(
            "memory per rank",
            f"{byte_size(memory.total)} of {byte_size(estimates.device_memory)}: {memory_verdict(plan)}",
            ", ".join(f"{part} {byte_size(getattr(memory, part))}" for part in MEMORY_PARTS),
        ),
        *(Row(f"with {name}", text) for name, text in alternatives_rows(plan)),
        Row("disk", f"{byte_size(estimates.disk_needed)} needed, {byte_size(disk_free)} free", brief=True),
        time_row(forecast),
        Row("finished model", show_path(plan.export_dir)),
    ]


def _training(plan: RunPlan) -> list[Row]:
    """Return what is trained, and how fast."""
    config = plan.config
    rates = Row(
        "learning rate",
        f"{config.lr:g} to {config.min_lr:g}",
        f"warm-up over {config.warmup_fraction:.0%} of the iterations, weight decay {config.weight_decay:g}",
    )
    if plan.adapter is None:
        return [Row("trained", trained_text(plan)), rates]
    return [Row("adapter", adapter_text(plan.adapter), brief=True), Row("trained", trained_text(plan), brief=True), rates]


def _less_memory(plan: RunPlan) -> list[Row]:
    """Return what is done to need less memory; nothing where that is nothing."""
    rows = [] if plan.recompute == "none" else [Row("recompute", plan.recompute, "activations, in the backward pass")]
    if plan.reshard:
        rows.append(Row("weights", "gathered for each pass", "by data-parallel ranks, and not kept for an iteration"))
    return rows


def memory_verdict(plan: RunPlan) -> str:
    """Return whether a rank has the memory that it needs, in words."""
    return "fits" if plan.estimates.memory.total <= plan.estimates.device_memory else "DOES NOT FIT"


def time_row(forecast: Forecast | None) -> Row:
    """Return how long the run will take, and what that is made from."""
    if forecast is None:
        return Row("time", "not known yet", "no run like it has trained here; `medsft rehearse` measures it", brief=True)
    return Row("time", f"about {duration(forecast.seconds)}", forecast.basis, brief=True)


def share_text(share: float, taken: int, available: int) -> str:
    """Return what a share of a file means, in documents."""
    return f"share {share:g}, {counted(taken, 'document')} in each epoch from {count(available)}"


def mixture_text(part: MixturePart, data: DatasetStats) -> str:
    """Return what a file gives to an epoch of a mixture: share, documents, and its part of what is trained on."""
    tokens = f"{share_text(part.share, part.documents, part.available)}, {short_count(part.tokens)} tokens"
    if not data.supervised_tokens:  # as in an estimate
        return tokens
    return f"{tokens}, {part.supervised_tokens / data.supervised_tokens:.1%} of the answer tokens"


def _mixture(data: DatasetStats) -> list[Row]:
    return [
        Row("mixture" if part is data.mixture[0] else "", f"{part.file}: {mixture_text(part, data)}") for part in data.mixture
    ]


def _held_out(plan: RunPlan) -> str:
    """Return how the documents to validate on were chosen, where --val has a share."""
    if plan.config.val_share is None:
        return ""
    by = f"values of `{plan.config.group_key}`" if plan.config.group_key else "rows"
    return f"{plan.config.val_share:.3g} of the {by} of --data, "


def _data(label: str, data: DatasetStats, chosen: str = "") -> Row:
    about = "" if data.fingerprint else "about "
    left_out = f"{count(data.left_out)} left out, " if data.left_out else ""
    divided = data.text_pieces > data.texts
    pieces = f"{counted(data.texts, 'text is', 'texts are')} read in {count(data.text_pieces)} pieces, " if divided else ""
    each = " an epoch" if data.mixture else ""
    value = f"{about}{counted(data.documents, 'document')}{each}, {about}{short_count(data.tokens)} tokens"
    note = f"{chosen}{left_out}{pieces}the longest has {counted(data.longest, 'token')}"
    return Row(label, value, note, brief=label == "training set")


def _validations(plan: RunPlan) -> list[Row]:
    """Return how often, and when, the run validates; nothing without a validation set and benchmarks."""
    if plan.val is None and not plan.tasks:
        return []
    interval = f"every {count(plan.eval_interval)} iterations" if plan.eval_interval > 1 else "after each iteration"
    parts = [interval, "after the last"]
    if plan.config.rules.validates_epochs:
        parts = ["before the first", *parts[:1], *(["after each epoch"] if plan.epoch_ends else []), *parts[1:]]
    return [Row("validations", count(plan.num_validations), ", ".join(parts))]


def task_text(task: TaskPlan) -> str:
    """Return what a run is asked of a benchmark at each validation."""
    of = f" of {count(task.available)}" if task.available > task.questions else ""
    always = f"always the same answer is right in {100 * task.majority:.1f} %"
    cut = f", {count(task.cut)} of them without their beginning, which is longer than the model reads" if task.cut else ""
    return f"{task.name}: {count(task.questions)}{of} questions, {short_count(task.tokens)} tokens; {always}{cut}"


def _checkpoints(plan: RunPlan) -> Row:
    every, kept = plan.config.save_interval, plan.config.keep_last
    often = "after each iteration" if every == 1 else f"one every {count(every)} iterations and after the last"
    when = often if plan.num_saves > 1 else "after the last iteration"
    keeps = f", the latest {kept} are kept" if 0 < kept < plan.num_saves else ""
    if plan.keeps_best:
        task = best_task(plan.config.keep_best)
        measure = "on the validation set" if task is None else f"by the accuracy in {task}"
        keeps += f", and the best {measure} is saved and kept"
    return Row("checkpoints", f"{count(plan.num_saves)}, {byte_size(plan.estimates.checkpoint_bytes)} each", f"{when}{keeps}")


def _answer_tokens(plan: RunPlan) -> list[Row]:
    """Return how many tokens of answers the run trains on; nothing where they were not counted."""
    trained = plan.train.supervised_tokens * plan.epochs
    return [Row("answer tokens", short_count(trained), "in all epochs")] if trained else []


def rehearsal_rows(rehearsal: Rehearsal) -> list[Row]:
    """Return what a rehearsal measured and forecasts."""
    return [
        Row("measured memory per rank", f"{byte_size(rehearsal.memory_bytes)} of {byte_size(rehearsal.device_memory)}"),
        Row("measured speed", f"{count(rehearsal.tokens_per_second)} tokens/s"),
        Row("measured checkpoint", f"{byte_size(rehearsal.checkpoint_bytes)} in {duration(rehearsal.save_seconds)}"),
        *(
            Row(
                f"resumed at {resumed.layout}",
                "same losses" if resumed.ok else "OTHER LOSSES",
                f"largest difference {resumed.difference:.2g}",
            )
            for resumed in rehearsal.resumes
        ),
        Row("forecast time", duration(rehearsal.forecast_seconds)),
        Row("forecast disk", f"{byte_size(rehearsal.forecast_disk_bytes)} of {byte_size(rehearsal.disk_free)} free"),
    ]
