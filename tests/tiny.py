"""Tiny models, tokenizers, sets and runs that tests make for themselves.

`project` has a model that can be trained. `plannable` has one of which only the sizes are real: all that a plan needs, in a
hundredth of the time.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, models, pre_tokenizers

from bench.sparse_weights import write_tensors as write_tensors
from medsft.core.config.run_config import RunConfig, from_mapping
from medsft.core.devices import Devices
from medsft.core.models.config import ModelConfig, read_hf_config
from medsft.core.planning.plan import RunPlan
from medsft.core.run.events import Event, EventReader, EventWriter
from medsft.core.run.launch import Launch
from medsft.core.run.rundir import RunDir
from medsft.core.settings import Settings, load_settings
from medsft.core.workflow import prepare

if TYPE_CHECKING:
    from medsft.core.engine.parallel.mesh import Mesh

SMALL_MODEL = ModelConfig(
    family="llama",
    vocab_size=96,
    hidden_size=48,
    intermediate_size=80,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=8,
    norm_eps=1e-5,
    rope_theta=10000.0,
    max_position_embeddings=512,
    tie_embeddings=False,
)
SMOLLM2 = ModelConfig(
    family="llama",
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    norm_eps=1e-5,
    rope_theta=1e5,
    max_position_embeddings=8192,
    tie_embeddings=True,
)

WORDS = [f"w{i}" for i in range(80)]
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 84,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    **{
        name: size for name, size in SIZES.items() if name not in ("head_dim", "max_position_embeddings", "tie_word_embeddings")
    },
}
"""What a config.json must say of such a model, and nothing more."""
LAPTOP = Devices("cpu", 8, 32 * 10**9, "a laptop", bf16=False)


def write_tokenizer(folder: Path) -> None:
    """A word-level tokenizer of the words above and of what the template writes."""
    vocabulary = ["<unk>", "question", "answer", "system", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))


def write_model(folder: Path, family: str = "llama", *, seed: int = 0, **changes: Any) -> Path:
    """A random model of a family as transformers saves it, with a tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**SIZES, **changes})
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def describe_weights(folder: Path, dtype: str = "BF16") -> dict[str, tuple[str, Sequence[int]]]:
    """What the weights of the model in a folder's config.json are, for `write_tensors`."""
    return {name: (dtype, shape) for name, shape in read_hf_config(folder).parameter_shapes()}


def write_weights(folder: Path, dtype: str = "BF16") -> Path:
    """Weights of zeros for the model in a folder's config.json."""
    return write_tensors(folder / "model.safetensors", describe_weights(folder, dtype))


def write_base(folder: Path, *, weights: bool = True, tokenizer: bool = True, **changes: Any) -> Path:
    """A base model without torch: the config.json of `LLAMA` with some values changed, and weights of zeros."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**LLAMA, **changes}))
    if weights:
        write_weights(folder)
    if tokenizer:
        write_tokenizer(folder)
    return folder


def write_rows(path: Path, count: int, *, seed: int = 0, longest: int = 60) -> Path:
    """Rows whose answer is the question backwards; lengths are very uneven."""
    draw = random.Random(seed)
    with path.open("w") as file:
        for _ in range(count):
            words = draw.choices(WORDS, k=min(longest, 1 + int(draw.expovariate(1 / 12))))
            file.write(json.dumps({"prompt": " ".join(words), "gold": " ".join(words[::-1][:8])}) + "\n")
    return path


def project(folder: Path, family: str = "llama", *, rows: int = 40, **changes: Any) -> tuple[RunConfig, Settings]:
    """A folder with a model, data and medsft.toml, and the config of a short run in it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_model(folder / "base", family, **changes)
    write_rows(folder / "train.jsonl", rows)
    write_rows(folder / "val.jsonl", 11, seed=1)
    (folder / "medsft.toml").write_text('[checkpoints.tiny]\n0.001 = "base"\n')
    return config_in(folder)


def plannable(folder: Path, **changes: Any) -> tuple[RunConfig, Settings]:
    """A folder with a base model of zeros, data and medsft.toml, and a config: what a run needs, and `changes`."""
    write_base(folder / "base")
    settings = folder / "medsft.toml"
    settings.write_text('[checkpoints.tiny]\n0.001 = "base"\n[datasets.words]\nn_docs = 40\n')
    config = {
        "checkpoint": "tiny",
        "size": 0.001,
        "run_name": "words",
        "data": [write_rows(folder / "train.jsonl", 40)],
        "val": [write_rows(folder / "val.jsonl", 11, seed=1)],
        "tokenized_data_dir": folder / "tokenized",
        "save_checkpoint_dir": folder / "runs",
    }
    return from_mapping({**config, **changes}), load_settings(settings)


def config_in(folder: Path) -> tuple[RunConfig, Settings]:
    """The config of a short run in a project that is there."""
    config = {
        "checkpoint": "tiny",
        "size": 0.001,
        "run_name": "words",
        "data": [folder / "train.jsonl"],
        "val": [folder / "val.jsonl"],
        "tokenized_data_dir": folder / "tokenized",
        "save_checkpoint_dir": folder / "runs",
        "global_batch": 8,
        "micro_batch": 2,
        "iters": 6,
        "lr": 1e-2,
        "min_lr": 1e-3,
        "eval_interval": 3,
        "save_interval": 100,
        "precision": "fp32",
    }
    return from_mapping(config), load_settings(folder / "medsft.toml")


def plan_of(config: RunConfig, settings: Settings, **changes: Any) -> RunPlan:
    """The plan of a config with some values changed, its sets tokenized."""
    return prepare(from_mapping(changes, base=config), settings)


def create(plan: RunPlan) -> RunDir:
    """The run folder of a plan, ready for workers that a test starts itself."""
    run = RunDir(Path(plan.run_dir))
    if not run.exists():
        run.create(plan.to_json())
    run.launch_path.write_text(json.dumps(asdict(Launch.of(plan))))
    return run


def train(plan: RunPlan) -> list[Event]:
    """Train a plan with one forked process for each rank, and return the events. Fails when a rank does."""
    import torch.multiprocessing as mp

    run = create(plan)
    store = run.control / "store"
    store.unlink(missing_ok=True)
    mp.start_processes(_rank, (plan.layout.world, str(store), str(run.path)), nprocs=plan.layout.world, start_method="fork")
    return EventReader(run.events_path).read()


def _rank(rank: int, world: int, store: str, run_dir: str) -> None:
    import os
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    from medsft.core.engine.commands.worker import main

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(seconds=60))
    code = main(run_dir)
    if code:
        raise SystemExit(code)


Layout = tuple[int, int, int]
"""(pp, dp, tp)"""


def plan_at(project: tuple[RunConfig, Settings], folder: Path, layout: Layout, **changes: Any) -> RunPlan:
    """The plan of a project at a layout, with a checkpoint every three iterations, all of which are kept.

    Its run has a folder of its own below `folder` each time: a test that is run once more must not go on with the run that was
    cut short.
    """
    pp, dp, tp = layout
    where = {"save_checkpoint_dir": mkdtemp(dir=folder), "save_interval": 3, "keep_last": 0}
    return plan_of(*project, pp=pp, tp=tp, nproc_per_node=pp * dp * tp, **{**where, **changes})


def named(layout: Layout) -> str:
    """The name of a layout, for the name of a test."""
    return "pp{}-dp{}-tp{}".format(*layout)


@dataclass(frozen=True)
class Rank:
    """A rank of a plan's world, in a process of its own."""

    plan: RunPlan
    mesh: Mesh
    run: RunDir
    events: EventWriter | None
    """On the rank that reports."""


def in_ranks(
    work: Callable[..., object], plan: RunPlan, folder: Path, *arguments: object
) -> tuple[list[tuple[float, float]], list[Any]]:
    """Let each rank of a plan's world do `work(rank, *arguments)`, in a forked process. Fails when one does.

    Return (loss and norm of each iteration, this start's alone; what `work` has returned on each rank).
    """
    import torch
    import torch.multiprocessing as mp

    run = create(plan)
    there = len(EventReader(run.events_path).read()) if run.events_path.exists() else 0
    (folder / "store").unlink(missing_ok=True)
    mp.start_processes(_work, (work, plan, folder, arguments), nprocs=plan.layout.world, start_method="fork")
    events = EventReader(run.events_path).read()[there:]
    found = [torch.load(folder / f"rank_{number}.pt", weights_only=False) for number in range(plan.layout.world)]
    return series(events, "step", "loss", "grad_norm"), found


def _work(number: int, work: Callable[..., object], plan: RunPlan, folder: Path, arguments: Sequence[object]) -> None:
    import os

    import torch
    import torch.distributed as dist

    from medsft.core.engine.parallel.mesh import open_mesh

    torch.set_num_threads(1)
    world = plan.layout.world
    os.environ.update(RANK=str(number), WORLD_SIZE=str(world), LOCAL_RANK=str(number))
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=number, world_size=world)
    mesh, run = open_mesh(plan.layout), RunDir(Path(plan.run_dir))
    events = EventWriter(run.events_path) if mesh.reports else None
    torch.save(work(Rank(plan, mesh, run, events), *arguments), folder / f"rank_{number}.pt")
    dist.destroy_process_group()


def series(events: list[Event], kind: str, *names: str) -> list[Any]:
    """The values of some fields of all events of a kind, a tuple for each."""
    return [tuple(event.data[name] for name in names) for event in events if event.kind == kind]


def go_back_to(run: RunDir, iteration: int) -> None:
    """Leave the run as it was when this checkpoint was its latest; 0: before the first."""
    for later in run.checkpoints():
        if later > iteration:
            shutil.rmtree(run.checkpoint_path(later))
    if iteration:
        run.set_latest_checkpoint(iteration)
    else:
        run.tracker_path.unlink()


def launched(folder: Path) -> RunDir:
    """The folder of a run that was just started, without a plan."""
    run = RunDir(folder)
    run.make_folders()
    run.launch_path.write_text("{}")
    return run
