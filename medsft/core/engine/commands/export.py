"""Writes the model of a run as a Hugging Face folder.

    python -m medsft.core.engine.commands.export RUN --to DIR [--iteration N] [--export FORM]

The folder has the weights without padding rows, the tokenizer with its new tokens and a chat template that gives exactly the
text of training, the end token for generation, a model card, and a manifest of what the model was made from. It appears when
complete. Of a run that trained an adapter, FORM says what is written: the model with the adapter in it (`merged`), the adapter
by itself in a folder below (`adapter`), or `both`.
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
from medsft.core.data.tokenizers.modelfile import modelfile, write_modelfile
from medsft.core.data.tokenizers.open import open_tokenizer
from medsft.core.disk import writing_to
from medsft.core.engine.commands.adapter_card import adapter_card, merged_section
from medsft.core.engine.commands.entry_point import run_process
from medsft.core.engine.commands.export_adapter import ADAPTER_FOLDER, compare_with_merged, write_adapter
from medsft.core.engine.commands.model_card import model_card
from medsft.core.engine.commands.rounding import rounding_matters, rounding_note
from medsft.core.engine.commands.verify import LogitDifference
from medsft.core.engine.formats.dcp import open_dcp
from medsft.core.engine.formats.hf import fill_hf, generation_config, write_json
from medsft.core.engine.formats.open import open_source
from medsft.core.engine.formats.run_adapter import open_trained
from medsft.core.engine.formats.source import DTYPES, WeightSource
from medsft.core.engine.formats.vocabulary import ResizedSource
from medsft.core.evaluation.card import CARD, with_results
from medsft.core.evaluation.model import find_model
from medsft.core.evaluation.results import FOLDER, read_records
from medsft.core.files import new_folder, sealed
from medsft.core.models.adapter_folder import CONFIG_NAME
from medsft.core.models.config import ModelConfig
from medsft.core.models.run_folder import read_manifest
from medsft.core.planning.plan import RunPlan
from medsft.core.run.best import end_of_training
from medsft.core.run.exports import check_request, checkpoints_there, finished_models
from medsft.core.run.integrity import EXPORT_MANIFEST, damage, find_good, hash_file
from medsft.core.run.launch import load_plan
from medsft.core.run.rundir import RunDir
from medsft.core.run.view import RunView
from medsft.errors import ExitCode, MismatchError


def export_run(run: RunDir, to: Path, *, iteration: int | None = None, form: str | None = None) -> Taken:
    """Write the model of a checkpoint to the folder `to` and return what was taken.

    By default that is the checkpoint of the finished model, of a run that has not ended the latest good one. `form` is the
    one of `--export`; None: as the run says. Raises `MismatchError` when `to` exists, or when there is no such checkpoint or
    it is damaged; `DiskError`.
    """
    plan = load_plan(run)
    check_request(run, to, iteration, form)
    number, passed_over = (iteration, []) if iteration is not None else find_good(run)
    if iteration is None and number is not None and number == end_of_training(run, plan):
        number = finished_models(run, plan, number).folders[Path(plan.export_dir)]
    if number is None:
        raise MismatchError("\n".join([f"{run.path}: no checkpoint to export.", *passed_over]), hint=checkpoints_there(run))
    checkpoint = run.checkpoint_path(number)
    problem = damage(checkpoint)
    if problem:
        hint = f"{checkpoints_there(run)} Export another: --iteration N."
        raise MismatchError(f"{checkpoint} is damaged: {problem}", hint=hint)
    with writing_to(to, ExitCode.TRAINING), new_folder(to) as aside:
        notes, rounding = _write(plan, run, checkpoint, aside, form or plan.config.export, name=to.name)
    return Taken(
        folder=str(to),
        iteration=number,
        total=plan.num_iterations,
        passed_over=tuple(passed_over),
        notes=tuple(notes),
        rounding=None if rounding is None else rounding_note(rounding, plan.precision, over="of documents of the run"),
        rounding_matters=rounding is not None and rounding_matters(rounding),
    )


@dataclass(frozen=True, slots=True)
class Taken:
    """Which checkpoint was exported."""

    folder: str
    iteration: int
    total: int
    """Iterations of the plan."""
    passed_over: tuple[str, ...]
    """A line for each later checkpoint that is damaged."""
    notes: tuple[str, ...] = ()
    """What to know to load an adapter that was written."""
    rounding: str | None = None
    """How far a merged model is from base and adapter, in words."""
    rounding_matters: bool = False
    """Whether it answers otherwise."""


def _write(
    plan: RunPlan, run: RunDir, checkpoint: Path, folder: Path, form: str, *, name: str
) -> tuple[list[str], LogitDifference | None]:
    """Write the folder, which will be called `name`; return what to know of an adapter in it, and how far rounding took the
    merged model from the adapter."""
    opened = open_tokenizer(Path(plan.base.tokenizer), template=plan.config.template)
    made_from = read_manifest(checkpoint)
    whole, iteration = run.view(), made_from["iteration"]
    view = whole.at(iteration)
    notes, rounding = list[str](), None
    adapter = made_from.get("adapter")
    rows = None if adapter is None else len(adapter["trained rows"])
    card = model_card(
        plan,
        whole,
        iteration,
        writes_date=bool(opened.template.date),
        trained_rows=rows,
        has_modelfile=modelfile(opened.template.jinja) is not None,
    )
    if adapter is None:
        _write_model(plan, ResizedSource(open_dcp(checkpoint), plan.base.model.vocab_size), opened, folder)
    else:
        trained = open_trained(checkpoint, adapter, lambda path, of: open_source(path, iteration=of))
        if form != "merged":
            notes = write_adapter(folder / ADAPTER_FOLDER, view, trained)
            _write_tokenizer(plan, opened, folder / ADAPTER_FOLDER)
            ends = generation_config(named_config(trained.merged.config, opened), _ends(plan, opened))
            write_json(folder / ADAPTER_FOLDER / "generation_config.json", ends)
        if form != "adapter":
            _write_model(plan, trained.merged, opened, folder)
            rounding = compare_with_merged(plan, trained.merged, folder)
            card += merged_section(plan, rounding, has_adapter=form == "both")
        else:
            card = adapter_card(view, trained, folder=f"THIS_FOLDER/{ADAPTER_FOLDER}")
    card = with_results(card, name, _results_before(run, iteration, folder))
    (folder / CARD).write_text(card, encoding="utf-8")
    edited = folder / ADAPTER_FOLDER / CONFIG_NAME  # by people: the card says so, for a base that lies elsewhere
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path != edited)
    files = {str(path.relative_to(folder)): hash_file(path) for path in paths}
    record = {**provenance(plan, view, made_from), "files": files}
    if rounding is not None:
        record["rounding"] = asdict(rounding)
    (folder / EXPORT_MANIFEST).write_text(sealed(record), encoding="utf-8")
    return notes, rounding


def _results_before(run: RunDir, iteration: int, folder: Path) -> list[dict[str, Any]]:
    """Return what `medsft eval` has found of a checkpoint, or of an export of it that has the weights in `folder`."""
    records = read_records(run.path / FOLDER)
    if not records:
        return []
    source = find_model(run.path, iteration=iteration)
    known = {source.identity(), replace(source, weights=folder, iteration=None).identity()}
    return [one for one in records if isinstance(one.get("model"), dict) and one["model"].get("fingerprint") in known]


def _write_model(plan: RunPlan, source: WeightSource, opened: OpenedTokenizer, folder: Path) -> None:
    """Write a model that needs no adapter, with its tokenizer."""
    fill_hf(
        folder,
        named_config(source.config, opened),
        ((name, source.read(name)) for name in source.names()),
        dtype=DTYPES[plan.precision],
        eos_token_ids=_ends(plan, opened),
    )
    _write_tokenizer(plan, opened, folder)
    write_modelfile(folder, opened.template.jinja)


def _write_tokenizer(plan: RunPlan, opened: OpenedTokenizer, folder: Path) -> None:
    export_tokenizer(opened, folder, model_max_length=plan.base.model.max_position_embeddings)


def _ends(plan: RunPlan, opened: OpenedTokenizer) -> list[int]:
    return end_tokens(opened, other_ends(plan.base.model))


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
            **({"benchmark_accuracy": {name: s.accuracy[-1] for name, s in view.tasks.items()}} if view.tasks else {}),
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
    parser.add_argument("--export", choices=("merged", "adapter", "both"))
    options = parser.parse_args(arguments)
    taken = export_run(RunDir(options.run), options.to, iteration=options.iteration, form=options.export)
    print(json.dumps(asdict(taken)))  # noqa: T201 - its result


if __name__ == "__main__":
    sys.exit(run_process(main))
