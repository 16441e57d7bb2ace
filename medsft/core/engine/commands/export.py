"""Writes the model of a run as a Hugging Face folder.

    python -m medsft.core.engine.commands.export RUN --to DIR [--iteration N]

The folder has the weights without padding rows, the tokenizer with its new tokens and a chat template that gives exactly the
text of training, the end token for generation, a model card, and a manifest of what the model was made from. It appears when
complete.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from medsft.core.data.tokenizers.base import OpenedTokenizer
from medsft.core.data.tokenizers.end_tokens import end_tokens, other_ends, pad_id
from medsft.core.data.tokenizers.export import export_tokenizer
from medsft.core.data.tokenizers.open import open_tokenizer
from medsft.core.disk import writing_to
from medsft.core.engine.commands.entry_point import run_process
from medsft.core.engine.commands.model_card import model_card
from medsft.core.engine.formats.dcp import open_dcp
from medsft.core.engine.formats.hf import fill_hf
from medsft.core.engine.formats.source import DTYPES
from medsft.core.engine.formats.vocabulary import ResizedSource
from medsft.core.files import new_folder, sealed
from medsft.core.models.config import ModelConfig
from medsft.core.models.run_folder import read_manifest
from medsft.core.planning.plan import RunPlan
from medsft.core.run.exports import check_request, checkpoints_there
from medsft.core.run.integrity import EXPORT_MANIFEST, damage, find_good, hash_file
from medsft.core.run.launch import load_plan
from medsft.core.run.rundir import RunDir
from medsft.core.run.view import RunView
from medsft.errors import ExitCode, MismatchError


def export_run(run: RunDir, to: Path, *, iteration: int | None = None) -> Taken:
    """Write the model of a checkpoint (the latest good one by default) to the folder `to` and return what was taken.

    Raises `MismatchError` when `to` exists, or when there is no such checkpoint or it is damaged;
    `DiskError`.
    """
    plan = load_plan(run)
    check_request(run, to, iteration)
    number, passed_over = (iteration, []) if iteration is not None else find_good(run)
    if number is None:
        raise MismatchError("\n".join([f"{run.path}: no checkpoint to export.", *passed_over]), hint=checkpoints_there(run))
    checkpoint = run.checkpoint_path(number)
    problem = damage(checkpoint)
    if problem:
        hint = f"{checkpoints_there(run)} Export another: --iteration N."
        raise MismatchError(f"{checkpoint} is damaged: {problem}", hint=hint)
    with writing_to(to, ExitCode.TRAINING), new_folder(to) as aside:
        _write(plan, run, checkpoint, aside)
    return Taken(folder=str(to), iteration=number, total=plan.num_iterations, passed_over=tuple(passed_over))


@dataclass(frozen=True, slots=True)
class Taken:
    """Which checkpoint was exported."""

    folder: str
    iteration: int
    total: int
    """Iterations of the plan."""
    passed_over: tuple[str, ...]
    """A line for each later checkpoint that is damaged."""


def _write(plan: RunPlan, run: RunDir, checkpoint: Path, folder: Path) -> None:
    opened = open_tokenizer(Path(plan.base.tokenizer), template=plan.config.template)
    source = ResizedSource(open_dcp(checkpoint), plan.base.model.vocab_size)
    fill_hf(
        folder,
        named_config(source.config, opened),
        ((name, source.read(name)) for name in source.names()),
        dtype=DTYPES[plan.precision],
        eos_token_ids=end_tokens(opened, other_ends(plan.base.model)),
    )
    export_tokenizer(opened, folder, model_max_length=plan.base.model.max_position_embeddings)
    made_from = read_manifest(checkpoint)
    view = run.view().at(made_from["iteration"])
    (folder / "README.md").write_text(model_card(plan, view, writes_date=bool(opened.template.date)), encoding="utf-8")
    files = {path.name: hash_file(path) for path in sorted(folder.iterdir())}
    record = {**provenance(plan, view, made_from), "files": files}
    (folder / EXPORT_MANIFEST).write_text(sealed(record), encoding="utf-8")


def named_config(config: ModelConfig, opened: OpenedTokenizer) -> ModelConfig:
    """Return the config with the ids that the exported tokenizer names: beginning, end of an answer, padding."""
    return replace(
        config,
        bos_token_id=opened.tokenizer.bos_id,
        eos_token_id=opened.stop_id,
        other_end_token_ids=(),  # generation_config.json has them; programs that read this file expect one
        pad_token_id=pad_id(opened),
    )


def provenance(plan: RunPlan, view: RunView, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return what the model was made from: hashes of data and base model, the plan, versions, and the final figures."""
    return {
        "plan": json.loads(plan.to_json()),
        "checkpoint": checkpoint,
        "metrics": {
            "loss": view.last("loss"),
            "validation_loss_of_base_model": view.base_eval("loss"),
            "validation_loss": view.last_eval("loss"),
            "validation_perplexity": view.last_eval("perplexity"),
            "validation_accuracy": view.last_eval("accuracy"),
            "tokens": checkpoint["state"]["tokens"],
            "supervised_tokens": checkpoint["state"]["supervised_tokens"],
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("medsft", "torch", "transformers", "tokenizers", "safetensors")},
        },
    }


def main(arguments: list[str]) -> None:
    """Entry point of the process; prints what it took, and where it wrote it, as JSON."""
    parser = argparse.ArgumentParser(prog="export")
    parser.add_argument("run", type=Path)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--iteration", type=int)
    options = parser.parse_args(arguments)
    taken = export_run(RunDir(options.run), options.to, iteration=options.iteration)
    print(json.dumps(asdict(taken)))  # noqa: T201 - its result


if __name__ == "__main__":
    sys.exit(run_process(main))
