"""What a person asks for: `RunConfig`. Flags, wizard labels and TOML comments come from the one description here.

A `RunConfig` is frozen and plain, and has no value of a wrong type. `check` says what is wrong with its values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any

from medsft.core.config.compat import COMPAT_RULES, CompatRules
from medsft.core.config.data_files import data_file, share_of_validation, shares_of
from medsft.core.config.elsewhere import ADAPTERS, BASE_PRECISIONS, FORMATS_OF_ROWS, OPTIMIZER_HELP, OPTIMIZERS, PRECISIONS
from medsft.core.config.eval_tasks import DEFAULT_LIMIT
from medsft.core.config.lora import LoraSpec, targets_in
from medsft.core.config.options import Default, check_types, converted, format_number, option, plain
from medsft.core.config.row_options import FORMATS, USED_BY
from medsft.errors import ConfigError

GROUPS = {
    "base": "Base model",
    "data": "Dataset",
    "adapter": "Adapter",
    "training": "Training",
    "parallel": "Parallel",
    "output": "Output",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """One fine-tuning run as a person describes it. Flag `--NAME` sets field `NAME`.

    Raises `ConfigError` for a value of a wrong type.
    """

    checkpoint: str = option("baseline", "Name of the base model: an entry of [checkpoints] in medsft.toml", "base")
    size: float = option(7.0, "Size of the base model", "base", unit="1e9 parameters", above=0, maximum=1e6)
    intermediate_iter: int | None = option(
        None, "Start from this saved iteration of the base model, not from its latest", "base", minimum=1
    )
    new_token_init: str = option(
        "mean",
        "Embedding rows of tokens that the base model lacks: the mean of its rows, or copies of its last row",
        "base",
        choices=("mean", "copy_last"),
        advanced=True,
    )

    run_name: str = option("", "Name of the run and of its tokenized set", "data")
    data: tuple[Path, ...] = option(
        (),
        "Files of rows to train on (JSONL, JSON array, CSV, Parquet; packed or not); FILE:0.3 takes 30 % of its documents in "
        "each epoch, FILE:2 all of them twice",
        "data",
    )
    val: tuple[Path, ...] = option(
        (),
        "Files of rows to validate on; or a share such as 0.05 of the documents of --data, which are then not trained on",
        "data",
    )
    group_key: str | None = option(
        None,
        "With a share in --val: rows with the same value under this key, such as those of one patient, stay on the same side",
        "data",
        advanced=True,
    )
    tokenized_data_dir: Path = option(Path("tokenized"), "Folder of the tokenized sets", "data")
    format: str = option(
        "auto",
        "What rows look like; auto tells it of each file by its first rows",
        "data",
        choices=("auto", *FORMATS),
        elsewhere=FORMATS_OF_ROWS,
    )
    question_key: str = option("prompt", "Key of the question in each row", "data")
    answer_key: str = option("gold", "Key of the answer in each row", "data")
    system_key: str | None = option(None, "Key of the system message in each row, if there is one", "data")
    messages_key: str | None = option(None, "Key of the list of messages in each row; its usual names are known", "data")
    options_key: str | None = option(
        None, "Key of the options of a multiple-choice question, or one for each with commas; the usual ones are known", "data"
    )
    text_key: str | None = option(None, "Key of the text in each row of plain text; `text` is known", "data")
    reasoning_key: str | None = option(None, "Key of what the model thinks before its (last) answer, if rows have it", "data")
    role_map: str | None = option(
        None, "Names of roles in messages beside the usual ones, as doctor=assistant,patient=user", "data", advanced=True
    )
    first_option: int | None = option(
        None,
        "Number of the first option where the right one is told by its number, 0 or 1; told from the rows when not given",
        "data",
        minimum=0,
        maximum=1,
        advanced=True,
    )
    template: str = option(
        "meditron",
        "How a row becomes text: meditron, chatml, or the tokenizer's own chat template",
        "data",
        choices=("meditron", "chatml", "model"),
    )
    template_date: str | None = option(
        None,
        "Date for a chat template that writes the current date into each document; a fixed one gives the same set on any day",
        "data",
        unit="YYYY-MM-DD",
        advanced=True,
    )
    turns: str = option(
        "all",
        "Answers of a conversation that are trained on: all, the last one, or each as the last of its own document (split)",
        "data",
        choices=("all", "last", "split"),
        advanced=True,
    )
    seq: int = option(
        2048,
        "Length of the longest conversation that is allowed; a longer text is read in pieces",
        "data",
        unit="tokens",
        minimum=8,
    )
    truncate: str = option(
        "error",
        "Conversations longer than --seq: stop with a report, drop them, or cut them on the right, whole turns first",
        "data",
        choices=("error", "drop", "keep"),
    )
    bad_rows: str = option(
        "error",
        "Rows that cannot be used: stop and name them, or skip and count them",
        "data",
        choices=("error", "skip"),
        advanced=True,
    )
    special_in_text: str = option(
        "escape",
        "Special strings such as <|im_end|> inside a row: plain text, control tokens (as in Megatron-LLM), or an error",
        "data",
        choices=("escape", "control", "error"),
        advanced=True,
    )
    retokenize: bool = option(False, "Tokenize again, even if a tokenized set exists", "data", advanced=True)
    trust_cache: bool = option(
        False, "Use a tokenized set that has no manifest, such as one that Megatron-LLM made", "data", advanced=True
    )

    adapter: str = option(
        "none",
        "What is trained: all weights of the model (none), or low-rank matrices beside its linear layers (lora)",
        "adapter",
        choices=("none", "lora"),
        elsewhere=ADAPTERS,
    )
    lora_rank: int = option(
        16, "Rank of the low-rank matrices; vLLM loads at most 16 unless told otherwise", "adapter", minimum=1, maximum=4096
    )
    lora_alpha: float = option(32.0, "The product of the low-rank matrices is scaled by alpha / rank", "adapter", above=0)
    lora_targets: str = option(
        "all",
        "Linear layers that get low-rank matrices: all, attention, mlp, or names with commas, as q_proj,v_proj",
        "adapter",
    )
    rslora: bool = option(False, "Scale by alpha / sqrt(rank), for high ranks", "adapter")
    base_precision: str | None = option(
        None,
        "Number format in which the frozen model is kept; that of the computation when not given. nf4 takes 4.13 bits a weight "
        "(QLoRA)",
        "adapter",
        choices=("bf16", "fp32", "nf4"),
        elsewhere=BASE_PRECISIONS,
    )
    export: str = option(
        "both",
        "What an adapter becomes at the end: a whole model, the adapter alone, or the model with the adapter inside its folder",
        "adapter",
        choices=("merged", "adapter", "both"),
    )

    epochs: float = option(3.0, "Passes over the documents, or over the mixture of --data", "training", above=0, maximum=1e6)
    iters: int | None = option(None, "Train exactly this many iterations instead of --epochs", "training", minimum=1)
    max_iters: int | None = option(None, "Train at most this many iterations", "training", minimum=1, advanced=True)
    global_batch: int = option(64, "Documents in one iteration", "training", unit="documents", minimum=1, maximum=10**6)
    micro_batch: int | None = option(
        None,
        "Documents in one forward pass of a rank, on average; as many as fit into memory when not given",
        "training",
        unit="documents",
        minimum=1,
        maximum=10**6,
    )
    loss_mask: float = option(
        0.0, "Weight in the loss of system and question tokens; answers weigh 1", "training", minimum=0, maximum=1
    )
    loss_norm: str = option(
        "token",
        "Average of the loss over all weighted tokens of the global batch, or of micro-batch averages (as in Megatron-LLM)",
        "training",
        choices=("token", "microbatch"),
        advanced=True,
    )
    lr: float = option(2e-5, "Peak learning rate", "training", above=0, with_adapter=2e-4)
    min_lr: float = option(2e-6, "Learning rate at the end of the cosine schedule", "training", minimum=0, with_adapter=2e-5)
    warmup_fraction: float = option(
        0.1, "Share of the iterations over which the learning rate rises to its peak", "training", minimum=0, maximum=1
    )
    weight_decay: float = option(
        0.1, "Weight decay; none on norms and biases", "training", minimum=0, with_adapter=0.0, advanced=True
    )
    adam_beta1: float = option(0.9, "First Adam coefficient", "training", minimum=0, below=1, advanced=True)
    adam_beta2: float = option(0.95, "Second Adam coefficient", "training", minimum=0, below=1, advanced=True)
    adam_eps: float = option(1e-5, "Adam epsilon", "training", above=0, advanced=True)
    clip_grad: float = option(1.0, "Largest norm of the gradient, 0 for no clipping", "training", minimum=0, advanced=True)
    optimizer: str = option(
        "adamw", OPTIMIZER_HELP, "training", choices=("adamw", "adamw8bit"), elsewhere=OPTIMIZERS, advanced=True
    )
    precision: str = option(
        "auto",
        "Number format of the computation; auto: bf16 where that is faster. Weights and moments are as --optimizer says",
        "training",
        choices=("auto", "bf16", "fp32"),
        elsewhere=PRECISIONS,
    )
    recompute: str = option(
        "auto",
        "Recompute activations in the backward pass: never, feed-forward only, or whole layers; auto: as the "
        "memory of a GPU asks for it",
        "training",
        choices=("auto", "none", "selective", "full"),
        advanced=True,
    )
    eval_interval: int | None = option(
        None,
        "Iterations between validations; chosen by the length of the run when not given",
        "training",
        unit="iterations",
        minimum=1,
    )
    keep_best: str = option(
        "loss",
        "Keep the best checkpoint beside the latest ones: by the loss on the validation set (loss), by accuracy:NAME of an "
        "--eval_task, or none",
        "training",
    )
    eval_task: tuple[str, ...] = option(
        (),
        "Benchmarks to ask at each validation, as NAME=FILE: pubmedqa=ori_pqal.json, or questions with options of your own",
        "training",
        advanced=True,
    )
    eval_limit: int = option(
        DEFAULT_LIMIT, "Questions of each --eval_task, chosen by hash", "training", unit="questions", minimum=1, advanced=True
    )
    patience: int | None = option(
        None,
        "End after this many validations in a row that were not better than the best; never early when not given",
        "training",
        unit="validations",
        minimum=1,
    )
    seed: int = option(1234, "Seed of the sample order", "training", minimum=0, maximum=2**63 - 1, advanced=True)
    compat: str = option(
        "none",
        "Train exactly as Megatron-LLM did for meditron, to repeat an old experiment",
        "training",
        choices=tuple(COMPAT_RULES),
        advanced=True,
    )

    tp: int | None = option(
        None,
        "Tensor-parallel size; from the name of the checkpoint's folder, else the smallest that fits, when not given",
        "parallel",
        minimum=1,
        maximum=1024,
    )
    pp: int | None = option(
        None,
        "Pipeline-parallel size; from the name of the checkpoint's folder, else the smallest that fits, when not given",
        "parallel",
        minimum=1,
        maximum=1024,
    )
    nproc_per_node: int | None = option(
        None,
        "Processes on each node; when not given one for each GPU, on a CPU as many as tp and pp need",
        "parallel",
        minimum=1,
        maximum=1024,
    )
    nodes: int = option(1, "Number of nodes", "parallel", minimum=1, maximum=10_000)
    rank: int = option(0, "Number of this node, from 0", "parallel", minimum=0)
    addr: str | None = option(None, "Address of node 0; needed with several nodes", "parallel")
    port: int = option(6020, "Port on node 0", "parallel", minimum=1, maximum=65535)
    max_restarts: int = option(
        0, "Restarts from the last checkpoint after a rank has failed", "parallel", minimum=0, advanced=True
    )

    save_checkpoint_dir: Path = option(Path("runs"), "Folder of the run folders", "output")
    save_interval: int = option(800, "Iterations between checkpoints", "output", unit="iterations", minimum=1)
    keep_last: int = option(2, "Number of latest checkpoints to keep; 0 keeps all", "output", minimum=0)
    export_checkpoint: str = option(
        "best",
        "Checkpoint that becomes the finished model: the best where one is kept, the last, or both",
        "output",
        choices=("best", "last", "both"),
    )
    id: str | None = option(None, "Suffix of the folder names, to tell this run from another with the same settings", "output")

    def __post_init__(self) -> None:
        """Raise `ConfigError` for values of wrong types, as `replace(config, lr="1e-5")` has: nothing later looks at types."""
        if problems := check_types(self):
            raise ConfigError(problems)
        for f in fields(self):
            if isinstance(getattr(self, f.name), Default):  # of a config with another --adapter, where it was made from one
                object.__setattr__(self, f.name, self.default_of(f))

    def default_of(self, f: Field[Any]) -> Any:
        """Return the value of a field of this config that is not given: that of some numbers depends on `--adapter`."""
        of_adapter = f.metadata["with_adapter"]
        return f.default if of_adapter is None or self.adapter == "none" else Default(of_adapter)

    @property
    def lora(self) -> LoraSpec | None:
        """The adapter that is trained; None where all weights are. `check` names targets that do not exist."""
        if self.adapter != "lora":
            return None
        return LoraSpec(
            rank=self.lora_rank, alpha=float(self.lora_alpha), targets=targets_in(self.lora_targets), rslora=self.rslora
        )

    @property
    def data_files(self) -> tuple[Path, ...]:
        """The files of `--data`, without their shares."""
        return tuple(data_file(typed).path for typed in self.data)

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of an epoch of each of `data_files`; nothing where an epoch takes every document once."""
        return shares_of(self.data)

    @property
    def val_files(self) -> tuple[Path, ...]:
        """The files of `--val`; nothing where it has a share."""
        return () if self.val_share is not None else self.val

    @property
    def val_share(self) -> float | None:
        """The share of the documents of `--data` that `--val` asks to validate on, None where it does not."""
        return share_of_validation(self.val)

    @property
    def rules(self) -> CompatRules:
        """What `--compat` asks for where medsft and the original differ; of an unknown value, medsft's own way."""
        return COMPAT_RULES.get(self.compat, COMPAT_RULES["none"])

    @property
    def row_options(self) -> dict[str, Any]:
        """Return the options that say how rows are read, None for one that is not given: it has its default."""
        given = {name: getattr(self, name) for name in USED_BY}
        defaults = {f.name: f.default for f in fields(self)}
        return {name: None if value == defaults[name] else value for name, value in given.items()}


OF_A_START = frozenset({"recompute", "save_interval", "keep_last", "keep_best", "patience", "export", "export_checkpoint"})
"""Fields that a run takes from the command that starts it, each time: they are no other training."""

NOT_PART_OF_A_RUN = OF_A_START | {
    *("rank", "addr", "port", "nproc_per_node", "nodes", "max_restarts", "tp", "pp", "micro_batch", "retokenize"),
    *("trust_cache", "max_iters", "tokenized_data_dir", "save_checkpoint_dir"),
}
"""Fields that may change between a run and its resumption without making it another run."""

OF_ADAPTER = frozenset({"adapter", "lora_rank", "lora_alpha", "lora_targets", "rslora", "base_precision", "export"})
"""Fields that mean something only in a run that trains an adapter."""


def from_mapping(values: Mapping[str, Any], *, where: str = "", base: RunConfig | None = None) -> RunConfig:
    """Build a config from plain values (TOML, flags, forms), over `base` or the defaults.

    `where` names the source in errors. Raises `ConfigError` with every unknown name and every value of a wrong type.
    """
    share = values.get("val")
    if isinstance(share, (int, float)) and not isinstance(share, bool):  # as a TOML file has it
        values = {**values, "val": format_number(share)}
    given = converted(RunConfig, values, where=where)
    start = {} if base is None else {f.name: getattr(base, f.name) for f in fields(RunConfig)}
    return RunConfig(**{**start, **given})


def to_mapping(config: RunConfig, *, only_changed: bool = False) -> dict[str, Any]:
    """Return plain values that TOML and JSON can hold; None is left out, with `only_changed` each default, too."""
    values = plain(config)
    if not only_changed:
        return values
    changed = [f.name for f in fields(config) if getattr(config, f.name) != config.default_of(f)]
    return {name: values[name] for name in changed if name in values}
