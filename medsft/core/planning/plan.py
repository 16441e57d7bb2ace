"""`RunConfig` -> `RunPlan`: everything that can be decided before a weight is read. No torch.

    config --check--> base model --inspect--> tokenized sets --select--> layout --> micro-batches --> iterations --> estimates

A plan is written once, as `plan.json`. Its `identity` covers what must not change between a run and its resumption: data, base
model, recipe, iterations. The layout may change; that is a reshard, not another run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from medsft.core.config.check import check_names
from medsft.core.config.run_config import NOT_PART_OF_A_RUN, OF_ADAPTER, RunConfig, from_mapping, to_mapping
from medsft.core.files import sealed, unsealed
from medsft.core.models.config import ModelConfig
from medsft.core.models.run_folder import PLAN_NAME
from medsft.core.planning.adapter import AdapterPlan
from medsft.core.planning.alternatives import Alternative, adapter_of
from medsft.core.planning.base_plan import BasePlan, rebuilt
from medsft.core.planning.layout import Layout, padded_model
from medsft.core.planning.memory import MemoryEstimate
from medsft.core.planning.schedule import epoch_ends, keeps_best, num_saves, plan_eval_interval
from medsft.core.planning.tasks import TaskPlan
from medsft.errors import MismatchError

FORMAT = 1
"""Raised when the meaning of a plan changes, so that an old run is not resumed with other mathematics."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixturePart:
    """What one file gives to an epoch of a mixture; tokens are the mean over epochs, which take other documents each."""

    file: str
    """Its name, without the folder."""
    share: float
    available: int
    """Documents of the file that the run uses."""
    documents: int
    """Of one epoch."""
    tokens: int
    labels: int
    supervised_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetStats:
    """Which tokenized set, and the numbers of what an epoch of a run, or a validation, uses of it."""

    folder: str
    fingerprint: str
    documents: int
    """Used, after `--truncate`, a piece of a text counting as one; of a mixture those of one epoch, as all numbers below."""
    left_out: int
    tokens: int
    """Of the documents that are used, each cut to --seq + 1: where none is left out or cut, those of the set."""
    labels: int
    """(token, next token) pairs of one pass: a document of n tokens gives n - 1."""
    supervised_tokens: int
    """Labels of one pass that belong to answers that are trained on."""
    longest: int
    """Tokens of the longest document that is used, at most --seq + 1."""
    mixture: tuple[MixturePart, ...] = ()
    """Of each file of --data, where files have shares."""
    cut_by_turn: int = 0
    """Conversations that `--truncate keep` cuts behind a whole turn and not where --seq ends."""
    texts: int = 0
    """Texts that are used."""
    text_pieces: int = 0
    """Pieces that these texts are read in, each of which counts as one of `documents`."""

    @property
    def shares(self) -> tuple[float, ...]:
        """Return the share of each file; nothing where an epoch takes each document once."""
        return tuple(part.share for part in self.mixture)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> DatasetStats:
        """Build the stats of `plan.json`; version 0.1.0 wrote labels as `tokens` and `longest`. Raises TypeError, KeyError."""
        if "labels" in raw:
            return cls(**{**raw, "mixture": tuple(MixturePart(**part) for part in raw.get("mixture", ()))})
        tokens, longest = raw["tokens"] + raw["documents"], raw["longest"] + 1
        return cls(**{**raw, "labels": raw["tokens"], "tokens": tokens, "longest": longest})


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimates:
    """What the run will need. Not part of its identity."""

    memory: MemoryEstimate
    device_kind: str
    device_name: str
    device_memory: int
    """Bytes one rank may use."""
    stream_tokens: int
    """Tokens of the largest micro-batch."""
    checkpoint_bytes: int
    disk_needed: int
    alternatives: tuple[Alternative, ...] = ()
    """Full fine-tuning, LoRA and QLoRA; nothing in plans of versions that had no choice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """A run, decided. Written as `plan.json`; `to_json` and `from_json` are inverse.

    Its paths are absolute, and those of the first start; `places` finds them again where a project was moved.
    """

    config: RunConfig
    run_dir: str
    export_dir: str
    base: BasePlan
    train: DatasetStats
    val: DatasetStats | None
    num_iterations: int
    epochs: float
    """Passes over the documents that `num_iterations` makes."""
    global_batch: int
    """Documents in one iteration."""
    eval_interval: int
    """Iterations between validations; see `validates_after`."""
    precision: str
    layout: Layout
    nproc_per_node: int
    micro_batch: int
    num_micro_batches: int
    """Per rank and iteration."""
    recompute: str
    """Activations that the backward pass computes again, as decided: none, selective or full."""
    reshard: bool
    """Whether data-parallel ranks gather the weights of a layer anew for each pass, and do not keep them for an iteration."""
    estimates: Estimates
    warnings: tuple[str, ...]
    tasks: tuple[TaskPlan, ...] = ()
    """Benchmarks that the run is asked at each validation."""

    def set_folders(self) -> tuple[Path, ...]:
        """Return where the tokenized sets are that the run reads."""
        return tuple(dict.fromkeys(Path(part.folder) for part in (self.train, self.val) if part is not None))

    @property
    def trained_model(self) -> ModelConfig:
        """Return the sizes in training: those of the base model with new tokens, the tables with their padding."""
        return padded_model(self.base.model, tp=self.layout.tp, vocab_multiple=self.config.rules.vocab_multiple)

    @property
    def softmax_rows(self) -> int:
        """Return how many rows of the output projection the loss runs over: the original lets the padding take part."""
        return (self.trained_model if self.config.rules.softmax_over_padding else self.base.model).vocab_size

    def validates_after(self, iteration: int) -> bool:
        """Whether the run validates after this iteration, counted from 1; 0 is before the first, the base model's loss."""
        if iteration == self.num_iterations or (iteration > 0 and iteration % self.eval_interval == 0):
            return True
        return self.config.rules.validates_epochs and (iteration == 0 or iteration in self.epoch_ends)

    @property
    def adapter(self) -> AdapterPlan | None:
        """Return what is trained beside a frozen model; None where all weights are trained."""
        return adapter_of(self.config, precision=self.precision, rows=self.base.trained_rows)

    @property
    def keeps_best(self) -> bool:
        """Whether the run keeps its best checkpoint, see `--keep_best`."""
        return keeps_best(self.config, validates=self.val is not None)

    @property
    def num_validations(self) -> int:
        """Return after how many iterations `validates_after` holds."""
        count = -(-self.num_iterations // self.eval_interval)
        if not self.config.rules.validates_epochs:
            return count
        between = self.epoch_ends - {self.num_iterations}
        return 1 + count + sum(iteration % self.eval_interval != 0 for iteration in between)

    @property
    def num_saves(self) -> int:
        """Return how many checkpoints the run saves."""
        return num_saves(self.num_iterations, self.config.save_interval)

    @property
    def epoch_ends(self) -> frozenset[int]:
        """Return the iterations after which another pass over the documents is done, see `schedule.epoch_ends`."""
        return epoch_ends(self.train.documents, self.global_batch, self.num_iterations)

    @property
    def identity(self) -> str:
        """Return the hash of what a resume must find unchanged."""
        return hashlib.sha256(json.dumps(self.identity_fields(), sort_keys=True).encode()).hexdigest()[:16]

    def identity_fields(self) -> dict[str, Any]:
        """Return what must not change between a run and its resumption, under names a person understands."""
        config = {k: v for k, v in to_mapping(self.config).items() if k not in NOT_PART_OF_A_RUN and k not in _BY_CONTENT}
        config = {name: value for name, value in config.items() if name not in OF_ADAPTER}
        config = {name: value for name, value in config.items() if name not in _LATER or value != _LATER[name]}
        config |= {"global_batch": self.global_batch, "eval_interval": self.eval_interval}
        return {
            "format": FORMAT,
            **{f"--{name}": value for name, value in config.items()},
            "base model": self.base.fingerprint,
            "new tokens": list(self.base.new_tokens),
            "training set": self.train.fingerprint,
            "training documents": self.train.documents,
            "validation set": self.val.fingerprint if self.val else None,
            **self._shares(),
            "iterations": self.num_iterations,
            "precision": self.precision,
            **self._adapter_fields(),
            **self._original_fields(),
            **({"questions of --eval_task": {task.name: task.fingerprint[:16] for task in self.tasks}} if self.tasks else {}),
            **({"conversations cut behind a whole turn": self.train.cut_by_turn} if self.train.cut_by_turn else {}),
        }

    def _shares(self) -> dict[str, Any]:
        """Return what is mixed and withheld, where a person asks for shares."""
        mixed = {"shares of the files of --data": list(self.train.shares)} if self.train.mixture else {}
        if self.config.val_share is None or self.val is None:
            return mixed
        return {**mixed, "share in --val": self.config.val_share, "validation documents": self.val.documents}

    def _adapter_fields(self) -> dict[str, Any]:
        """Return what the adapter and its frozen base are, where a run trains one."""
        if self.adapter is None:
            return {}
        lora = self.adapter.lora
        return {
            "--adapter": self.config.adapter,
            "--lora_rank": lora.rank,
            "--lora_alpha": lora.alpha,
            "--lora_targets": ",".join(lora.targets),
            "--rslora": lora.rslora,
            "--base_precision": self.adapter.base_precision,
            **({"adapter that is trained on": self.base.adapter.fingerprint} if self.base.adapter else {}),
        }

    def _original_fields(self) -> dict[str, Any]:
        """Return what the original's loss depends on beside the recipe, so that no resume changes it."""
        if not self.config.rules.loss_depends_on_layout:
            return {}
        return {
            "rows in the softmax (--tp, --compat megatron-llm)": self.softmax_rows,
            "documents in a mean (--micro_batch, --compat megatron-llm)": self.micro_batch,
        }

    def to_json(self) -> str:
        """Return the text of `plan.json`."""
        record = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}
        record["config"] = to_mapping(self.config)
        record = {name: value for name, value in record.items() if name != "tasks" or value}
        return sealed({"format": FORMAT, "identity": self.identity, **record})

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], *, where: str = PLAN_NAME) -> RunPlan:
        """Build the plan of `plan.json`. Raises `MismatchError` when it is of another version or incomplete."""
        if not isinstance(raw, Mapping):
            raise MismatchError(f"{where}: damaged: no plan in it.")
        if raw.get("format") != FORMAT:
            raise MismatchError(
                f"{where}: plan format {raw.get('format')} is not {FORMAT}; another version of medsft wrote it."
            )
        try:
            estimates = dict(raw["estimates"])
            config = _config(raw["config"], where)
            return cls(
                config=config,
                global_batch=raw.get("global_batch", config.global_batch),
                # Version 0.1.0 took both as they were typed, and wrote its default of the interval down.
                eval_interval=raw.get("eval_interval") or plan_eval_interval(config, raw["num_iterations"]),
                base=BasePlan.from_json(raw["base"]),
                train=DatasetStats.from_json(raw["train"]),
                val=DatasetStats.from_json(raw["val"]) if raw["val"] else None,
                layout=Layout(**raw["layout"]),
                estimates=rebuilt(
                    Estimates,
                    estimates,
                    memory=MemoryEstimate(**estimates["memory"]),
                    alternatives=tuple(Alternative(**kind) for kind in estimates.get("alternatives", ())),
                ),
                warnings=tuple(raw["warnings"]),
                recompute=raw.get("recompute", config.recompute),
                reshard=raw.get("reshard", False),
                tasks=tuple(map(TaskPlan.from_json, raw.get("tasks", ()))),
                **{name: raw[name] for name in _SCALARS},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MismatchError(f"{where}: damaged or incomplete: {error}") from None

    @classmethod
    def read(cls, path: Path) -> RunPlan:
        """Return the plan in a file. Raises `MismatchError` when there is none, or it is damaged or of another version."""
        return cls.from_json(read_plan_file(path), where=str(path))


_BY_CONTENT = frozenset(
    {"data", "val", "template_date", "checkpoint", "size", "epochs", "iters", "max_iters", "eval_task", "eval_limit"}
    | {"format", "messages_key", "options_key", "text_key", "reasoning_key", "role_map", "first_option"}
)
"""Fields whose effect the identity holds otherwise: by the hash of the content, or by the number of iterations."""
_LATER = {"turns": "all", "optimizer": "adamw"}
"""Fields that medsft 0.1.0 did not have, with the value under which a run is what it was without them."""
_SCALARS = (
    *("run_dir", "export_dir", "num_iterations", "epochs", "precision"),
    *("nproc_per_node", "micro_batch", "num_micro_batches"),
)


def read_plan_file(path: Path) -> dict[str, Any]:
    """Return what a `plan.json` says. Raises `MismatchError` when there is none, or it is not as it was written."""
    try:
        return unsealed(path.read_bytes())
    except FileNotFoundError:
        raise MismatchError(f"{path.parent}: not a run; there is no {path.name}.") from None
    except OSError as error:
        raise MismatchError(f"{path}: cannot be read: {error.strerror or error}.") from None
    except ValueError as error:
        hint = "Type the `medsft sft` command that started it: it writes the plan anew, and goes on."
        raise MismatchError(f"{path}: damaged: {error}.", hint=hint) from None


def _config(raw: Mapping[str, Any], where: str) -> RunConfig:
    """Build the config. Its names are checked: a plan that came from elsewhere must not lead out of the folders it is for.

    A run that was planned before best checkpoints were kept goes on without.
    """
    config = from_mapping({"keep_best": "none", **raw}, where=where)
    problems = check_names(config)
    if problems:
        raise MismatchError(f"{where}: {problems[0]}")
    return config


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__") and not isinstance(value, RunConfig):
        return asdict(value)
    return list(map(_plain, value)) if isinstance(value, tuple) else value


def difference(old: RunPlan, new: RunPlan) -> list[str]:
    """Return one line for each thing that a resume must find unchanged and does not."""
    before, after = old.identity_fields(), new.identity_fields()
    names = [*before, *(name for name in after if name not in before)]
    absent = {"--adapter": "none", **{f"--{name}": value for name, value in _LATER.items()}}
    if before.get("--adapter") != after.get("--adapter"):  # what kind of adapter says nothing more then
        names = [name for name in names if name == "--adapter" or name.removeprefix("--") not in OF_ADAPTER]
    pairs = [(name, before.get(name, absent.get(name)), after.get(name, absent.get(name))) for name in names]
    return [f"{name}: was {was}, now {now}" for name, was, now in pairs if was != now]


def absolute(path: str | Path) -> str:
    """Return the absolute path as text, for a plan that other nodes and other folders read."""
    return str(Path(path).expanduser().resolve())
