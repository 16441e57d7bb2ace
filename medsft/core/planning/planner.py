"""Makes the plan: looks at the base model, the tokenised sets, the devices and the disk, and decides what is left to decide.

`make_plan` is for a run about to start and raises on what is wrong. `preview` is for a form that is still being filled in: it
returns what is wrong, and plans with an estimate from the JSONL while nothing is tokenised.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medsft.core.architecture import ModelConfig
from medsft.core.basemodel import BaseModel, inspect_base
from medsft.core.config import RunConfig, check
from medsft.core.data.dataset import TokenizedData, open_tokenized, set_exists
from medsft.core.data.report import apply_truncation
from medsft.core.data.tokenizers import open_tokenizer
from medsft.core.devices import Devices, find_devices
from medsft.core.planning.layout import Layout, bubble_share, check_layout, smaller_first, table_rows, valid_tensor_levels
from medsft.core.planning.memory import MemoryEstimate, estimate_memory
from medsft.core.planning.order import SampleOrder, deal_to_ranks
from medsft.core.planning.plan import (
    BasePlan,
    DataPlan,
    Estimates,
    RunPlan,
    absolute,
    export_folder_name,
    run_folder_name,
    run_folder_pattern,
)
from medsft.core.planning.schedule import plan_iterations
from medsft.core.registry import CheckpointEntry, Settings
from medsft.errors import ConfigError, DataError, MedsftError, MismatchError, Problem

_FITS = 0.9
"""Share of a device's memory that a plan may fill; the estimate is no better than that."""
_LARGEST_MICRO_BATCH = {"cpu": 4, "cuda": 32}
"""Larger streams do not make a CPU faster, they only take its memory."""
_SAMPLED_BATCHES = 200
_BYTES_PER_TOKEN = 4.0
"""Of English text, for estimates before anything is tokenised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """The plan as far as it stands, for a form that is being filled in."""

    problems: tuple[Problem, ...]
    plan: RunPlan | None
    exact: bool
    """Whether documents were counted in a tokenised set, not estimated from the JSONL."""


@dataclass(frozen=True, slots=True)
class _Set:
    """A set as the plan sees it: really tokenised, or guessed from its files."""

    plan: DataPlan
    lengths: np.ndarray
    """int64 [documents]: (input, label) pairs of each document that is used."""
    exact: bool


def make_plan(config: RunConfig, settings: Settings) -> RunPlan:
    """Decide the run. The sets must have been tokenised.

    Raises `ConfigError` (flags), `DataError` (sets, truncation) or `MismatchError` (base model).
    """
    problems = check(config)
    if problems:
        raise ConfigError(problems)
    entry = settings.find_checkpoint(config.checkpoint, config.size)
    base = inspect_base(entry.path, config.intermediate_iter)
    folder = Path(config.tokenized_data_dir) / config.run_name
    train = _tokenized(open_tokenized(folder), config, "--data")
    val_folder = folder.with_name(folder.name + "-val")
    val = _tokenized(open_tokenized(val_folder), config, "--val") if set_exists(val_folder) else None
    return _decide(config, settings, entry, base, train, val, find_devices())


def replan(plan: RunPlan, *, run_dir: Path, changes: Mapping[str, object]) -> RunPlan:
    """Return an existing run's plan with other levels or processes, its folder and its number of iterations kept.

    Raises what `make_plan` raises.
    """
    config = replace(plan.config, **{"iters": plan.num_iterations, **changes})  # type: ignore[arg-type]
    entry = CheckpointEntry(
        name=config.checkpoint,
        size=config.size,
        path=Path(plan.base.path),
        family=None,
        tokenizer=Path(plan.base.tokenizer),
        source=run_dir,
    )
    settings = Settings(checkpoints={(entry.name, entry.size): entry}, datasets={})
    changed = make_plan(config, settings)
    return replace(changed, config=replace(config, iters=plan.config.iters), run_dir=str(run_dir), export_dir=plan.export_dir)


def preview(config: RunConfig, settings: Settings) -> Preview:
    """Plan what can be planned. Never raises for what a person got wrong."""
    problems = list(check(config))
    entry: CheckpointEntry | None = None
    base: BaseModel | None = None
    train: _Set | None = None
    try:
        entry = settings.find_checkpoint(config.checkpoint, config.size)
        base = inspect_base(entry.path, config.intermediate_iter)
    except MedsftError as error:
        problems.extend(_as_problems(error, "--checkpoint"))
    try:
        train = _train_or_guess(config)
    except MedsftError as error:
        problems.extend(_as_problems(error, "--data"))
    plan = None
    if base is not None and entry is not None and train is not None and not check(config):
        try:
            plan = _decide(config, settings, entry, base, train, None, find_devices())
        except MedsftError as error:
            problems.extend(_as_problems(error, ""))
    return Preview(problems=tuple(problems), plan=plan, exact=train is not None and train.exact)


def _as_problems(error: MedsftError, where: str) -> Iterable[Problem]:
    return error.problems if isinstance(error, ConfigError) else [Problem(where, error.message, error.hint)]


def _tokenized(data: TokenizedData, config: RunConfig, flag: str) -> _Set:
    chosen = apply_truncation(data, config.seq, config.truncate, loss_mask=config.loss_mask, flag=flag)  # type: ignore[arg-type]
    lengths = chosen.lengths - 1
    spans = data.answer_spans[chosen.indices].astype(np.int64)
    ends, starts = np.minimum(spans[:, 1], config.seq + 1), np.maximum(spans[:, 0], 1)
    plan = DataPlan(
        folder=absolute(data.folder),
        fingerprint=data.fingerprint,
        documents=len(lengths),
        left_out=chosen.dropped,
        tokens=int(lengths.sum()),
        supervised_tokens=int(np.maximum(ends - starts, 0).sum()),
        longest=int(lengths.max()),
    )
    return _Set(plan, lengths, exact=True)


def _train_or_guess(config: RunConfig) -> _Set:
    folder = Path(config.tokenized_data_dir) / config.run_name
    if config.run_name and set_exists(folder):
        return _tokenized(open_tokenized(folder), config, "--data")
    if not config.data:
        raise ConfigError([Problem("--data", "JSONL files are needed", f"There is no tokenised set in {folder}.")])
    return _guess(config)


def _guess(config: RunConfig) -> _Set:
    """Count lines, and take text for tokens at a usual rate. Good enough to plan a form by, never to start from."""
    lines: list[np.ndarray] = []
    for path in config.data:
        try:
            content = np.frombuffer(Path(path).read_bytes(), np.uint8) if path.suffix != ".gz" else None
        except OSError as error:
            raise ConfigError([Problem("--data", f"{path}: {error.strerror}")]) from None
        if content is None:
            raise ConfigError([Problem("--data", f"{path} is compressed", "Tokenise it first to plan exactly.")])
        ends = np.flatnonzero(content == ord("\n"))
        lines.append(np.diff(ends, prepend=-1))
    sizes = np.concatenate(lines)
    if not len(sizes):
        raise DataError("--data: the files are empty")
    lengths = np.clip((sizes / _BYTES_PER_TOKEN).astype(np.int64), 2, config.seq)
    plan = DataPlan(
        folder=absolute(Path(config.tokenized_data_dir) / config.run_name),
        fingerprint="",
        documents=len(lengths),
        left_out=0,
        tokens=int(lengths.sum()),
        supervised_tokens=0,
        longest=int(lengths.max()),
    )
    return _Set(plan, lengths, exact=False)


def _decide(
    config: RunConfig,
    settings: Settings,
    entry: CheckpointEntry,
    base: BaseModel,
    train: _Set,
    val: _Set | None,
    devices: Devices,
) -> RunPlan:
    base_plan = _base_plan(config, entry, base)
    model = base_plan.model
    warnings = [*base.warnings]
    expected = settings.expected_documents(config.run_name)
    if expected is not None and expected != train.plan.documents:
        warnings.append(f"medsft.toml says {expected:,} documents for {config.run_name}, the set has {train.plan.documents:,}.")
    if train.plan.left_out:
        warnings.append(f"{train.plan.left_out:,} documents are left out (--truncate {config.truncate}).")
    precision = _precision(config, devices, warnings)
    layout, nproc = _layout(config, base, model, devices, train, precision)
    micro_batch, stream_tokens, memory = _micro_batch(config, model, layout, devices, train, precision, nproc)
    num_micro = len(deal_to_ranks(train.lengths[:1].repeat(config.global_batch), dp=layout.dp, micro_batch=micro_batch)[0])
    if layout.pp > 1 and bubble_share(layout.pp, num_micro) > 0.2:
        share = bubble_share(layout.pp, num_micro)
        warnings.append(
            f"{num_micro} micro-batches leave {layout.pp} pipeline stages idle for {share:.0%}; lower --micro_batch."
        )
    iterations = config.iters or plan_iterations(train.plan.documents, config.epochs, config.global_batch)
    iterations = min(iterations, config.max_iters or iterations)
    family = entry.family or _family(model)
    run_dir = _run_dir(config, family, layout)
    memory_limit = devices.memory_per_rank(nproc)
    if memory.total > memory_limit:
        warnings.append(
            f"A rank needs about {memory.total / 1e9:.1f} GB and has {memory_limit / 1e9:.1f} GB: it will run out of memory. "
            "Use a smaller --micro_batch, --recompute full, or more --tp or --pp."
        )
    estimates = _estimates(config, model, run_dir, memory, memory_limit, devices, stream_tokens, iterations, precision)
    if estimates.disk_needed > estimates.disk_free:
        warnings.append(
            f"Checkpoints and the finished model need {estimates.disk_needed / 1e9:.1f} GB, "
            f"{estimates.disk_free / 1e9:.1f} GB are free under {Path(config.save_checkpoint_dir)}."
        )
    return RunPlan(
        config=config,
        run_dir=str(run_dir),
        export_dir=absolute(Path(config.save_checkpoint_dir) / export_folder_name(config, family)),
        base=base_plan,
        train=train.plan,
        val=val.plan if val else None,
        num_iterations=iterations,
        epochs=round(iterations * config.global_batch / train.plan.documents, 4),
        precision=precision,
        layout=layout,
        nproc_per_node=nproc,
        micro_batch=micro_batch,
        num_micro_batches=num_micro,
        estimates=estimates,
        warnings=tuple(warnings),
    )


def _base_plan(config: RunConfig, entry: CheckpointEntry, base: BaseModel) -> BasePlan:
    if base.config is None:
        raise MismatchError(f"{base.path}: cannot tell which model this is.", hint="Convert it first: medsft convert.")
    source = entry.tokenizer or base.tokenizer
    if source is None:
        raise MismatchError(
            f"{base.path}: no tokenizer beside the model.",
            hint='Name it in medsft.toml: { path = "...", tokenizer = "..." }.',
        )
    tokenizer = open_tokenizer(source, template=config.template).tokenizer
    rows = base.config.vocab_size
    # A Megatron-LLM table is padded and does not say how far; its tokenizer does.
    vocab = tokenizer.vocab_size if base.kind == "megatron" else max(rows, tokenizer.vocab_size)
    new = tuple(token for token, number in tokenizer.added_tokens if number >= rows)
    return BasePlan(
        path=absolute(base.path),
        kind=base.kind,
        iteration=base.iteration,
        fingerprint=sampled_fingerprint(base.weights),
        tokenizer=absolute(source),
        model=base.config.with_vocab(vocab),
        base_vocab_size=rows,
        new_tokens=new,
        bytes=base.size_bytes,
    )


def _precision(config: RunConfig, devices: Devices, warnings: list[str]) -> str:
    if config.precision == "auto":
        return "bf16" if devices.bf16 else "fp32"
    if config.precision == "bf16" and not devices.bf16:
        warnings.append(f"{devices.name} has no bf16 arithmetic: --precision bf16 will be slow here.")
    return config.precision


def _layout(
    config: RunConfig, base: BaseModel, model: ModelConfig, devices: Devices, train: _Set, precision: str
) -> tuple[Layout, int]:
    """Return the levels and the processes on each node: flags before the checkpoint's folder before what fits."""
    tp, pp = config.tp or base.tp, config.pp or base.pp
    if config.nproc_per_node:
        nproc = config.nproc_per_node
    elif devices.kind == "cuda":
        nproc = devices.count
    else:
        nproc = max(1, -(-(tp or 1) * (pp or 1) // config.nodes))
    world = nproc * config.nodes
    if tp is None or pp is None:
        tp, pp = _smallest_that_fits(config, model, world, nproc, devices, train, precision, tp, pp)
    problems = []
    if world % (tp * pp):
        problems.append(
            Problem(
                "--nproc_per_node",
                f"{world} processes ({nproc} on each of {config.nodes} nodes) cannot be divided into tp {tp} x pp {pp}",
                f"Use a multiple of {tp * pp} processes, or other --tp and --pp.",
            )
        )
    elif nproc % tp:
        problems.append(
            Problem("--tp", f"{tp} does not divide the {nproc} processes of a node", "Ranks of one tensor group share a node.")
        )
    layout = Layout(pp=pp, dp=max(1, world // (tp * pp)), tp=tp)
    problems += check_layout(model, layout, global_batch=config.global_batch)
    if problems:
        raise ConfigError(problems)
    return layout, nproc


def _smallest_that_fits(
    config: RunConfig,
    model: ModelConfig,
    world: int,
    nproc: int,
    devices: Devices,
    train: _Set,
    precision: str,
    tp: int | None,
    pp: int | None,
) -> tuple[int, int]:
    """Return (tp, pp) with the least splitting whose memory fits; the most splitting when none does."""
    limit = _FITS * devices.memory_per_rank(nproc)
    valid = set(valid_tensor_levels(model))
    candidates = [
        (t, p)
        for t, p in smaller_first(world)
        if t in valid and nproc % t == 0 and p <= model.num_layers and t == (tp or t) and p == (pp or p)
    ]
    for t, p in candidates:
        layout = Layout(pp=p, dp=world // (t * p), tp=t)
        need = _memory(config, model, layout, devices, train, precision, config.micro_batch or 1)[1]
        if need.total <= limit:
            return t, p
    return candidates[-1] if candidates else (tp or 1, pp or 1)


def _micro_batch(
    config: RunConfig, model: ModelConfig, layout: Layout, devices: Devices, train: _Set, precision: str, nproc: int
) -> tuple[int, int, MemoryEstimate]:
    """Return (documents in a micro-batch, tokens of the largest, memory): the largest power of two that fits.

    A pipeline gets at least four micro-batches a stage where the global batch has them, so that it is rarely idle.
    """
    if config.micro_batch:
        return config.micro_batch, *_memory(config, model, layout, devices, train, precision, config.micro_batch)
    most = min(_LARGEST_MICRO_BATCH[devices.kind], max(1, config.global_batch // layout.dp))
    if layout.pp > 1:
        most = max(1, min(most, config.global_batch // (layout.dp * 4 * layout.pp)))
    limit = _FITS * devices.memory_per_rank(nproc)
    chosen = 1
    found = _memory(config, model, layout, devices, train, precision, 1)
    while chosen * 2 <= most:
        larger = _memory(config, model, layout, devices, train, precision, chosen * 2)
        if larger[1].total > limit:
            break
        chosen, found = chosen * 2, larger
    return chosen, *found


def _memory(
    config: RunConfig, model: ModelConfig, layout: Layout, devices: Devices, train: _Set, precision: str, micro_batch: int
) -> tuple[int, MemoryEstimate]:
    """Return (tokens of the largest micro-batch, memory of the heaviest rank)."""
    tokens = largest_micro_batch(config, train.lengths, layout.dp, micro_batch)
    estimate = estimate_memory(
        model.with_vocab(table_rows(model)),
        layout,
        stream_tokens=tokens,
        num_micro_batches=max(1, config.global_batch // (micro_batch * layout.dp)),
        bf16=precision == "bf16",
        recompute=config.recompute,
        device_kind=devices.kind,
    )
    return tokens, estimate


def largest_micro_batch(config: RunConfig, lengths: np.ndarray, dp: int, micro_batch: int) -> int:
    """Return the most tokens of a micro-batch in the first batches of the run, and with the longest document in one."""
    order = SampleOrder(len(lengths), config.global_batch, config.seed)
    largest = int(lengths.max())
    for iteration in range(min(_SAMPLED_BATCHES, -(-len(lengths) // config.global_batch))):
        batch = lengths[order.batch(iteration)]
        for rank in deal_to_ranks(batch, dp=dp, micro_batch=micro_batch):
            largest = max(largest, *(int(batch[part].sum()) for part in rank))
    return largest


def _run_dir(config: RunConfig, family: str, layout: Layout) -> Path:
    """Return the run's folder: one that exists at other levels, for that is a reshard and not another run, or a new one."""
    parent = Path(config.save_checkpoint_dir).expanduser().resolve()
    name = run_folder_name(config, family, layout)
    existing = sorted(parent.glob(run_folder_pattern(config, family) + "/plan.json"))
    if existing and not (parent / name / "plan.json").is_file():
        return existing[0].parent
    return parent / name


def _estimates(
    config: RunConfig,
    model: ModelConfig,
    run_dir: Path,
    memory: MemoryEstimate,
    memory_limit: int,
    devices: Devices,
    stream_tokens: int,
    iterations: int,
    precision: str,
) -> Estimates:
    parameters = model.with_vocab(table_rows(model)).num_parameters()
    checkpoint = 12 * parameters
    saves = math.ceil(iterations / config.save_interval)
    kept = min(saves, config.keep_last + 1 if config.keep_last else saves)
    return Estimates(
        memory=memory,
        device_kind=devices.kind,
        device_name=devices.name,
        device_memory=memory_limit,
        stream_tokens=stream_tokens,
        checkpoint_bytes=checkpoint,
        disk_needed=kept * checkpoint + (2 if precision == "bf16" else 4) * parameters,
        disk_free=_free_bytes(run_dir),
    )


def _free_bytes(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _family(model: ModelConfig) -> str:
    """Return the family's name in folder names; the original writes `llama-2` for all but Llama 1."""
    if model.family == "llama":
        return "llama" if model.norm_eps == 1e-6 else "llama-2"
    return model.family


def sampled_fingerprint(weights: Path) -> str:
    """Return a cheap hash of a base model's files: names, sizes, and 64 KiB at the start, middle and end of each."""
    files = [weights] if weights.is_file() else sorted(p for p in weights.rglob("*") if p.is_file() and _is_weight(p))
    total = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        total.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for start in (0, size // 2, max(0, size - 65536)):
                file.seek(start)
                total.update(file.read(65536))
    return total.hexdigest()[:32]


def _is_weight(path: Path) -> bool:
    return path.suffix in (".safetensors", ".bin", ".pt", ".distcp", ".gguf")
