"""`medsft export` and `medsft convert`: finished models and other formats. The work is done by an engine process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from json import loads
from pathlib import Path
from typing import Annotated, Any

import typer

from medsft.cli import console
from medsft.cli.flags import DEFAULT_RUNS_FOLDER, Json, Run, RunsFolder, find_run, takes_options
from medsft.core.models.conversion import Conversion, look_at_source
from medsft.core.models.merging import Merge, look_at_merge


def export(
    run: Run,
    *,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="New folder for the model.")],
    iteration: Annotated[
        int | None,
        typer.Option(
            "--iteration",
            metavar="N",
            min=1,
            help="Saved iteration to export; otherwise the finished model's, or the latest.",
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--export",
            metavar="FORM",
            help="Of a run that trained an adapter: merged (needs none), adapter (alone, for PEFT) or both; by default as "
            "the run says.",
        ),
    ] = None,
    save_checkpoint_dir: RunsFolder = DEFAULT_RUNS_FOLDER,
) -> None:
    """Write a run's model as a Hugging Face folder, with tokenizer, chat template, model card and manifest.

    For other formats: medsft convert RUN DIR --to megatron.
    """
    from medsft.core.run.exports import check_request
    from medsft.core.run.launch import run_engine

    found = find_run(run, save_checkpoint_dir)
    check_request(found, to, iteration, form)  # before torch is loaded
    with busy("exporting"):
        chosen = [] if iteration is None else ["--iteration", str(iteration)]
        chosen += [] if form is None else ["--export", form]
        result = run_engine("export", [str(found.path), "--to", str(to), *chosen])
    taken = loads(result)
    for line in taken["passed_over"]:
        console.note(f"warning: {line}")
    for line in taken["notes"]:
        console.note(f"adapter/: {line}")
    if taken["rounding"]:
        console.note(f"warning: {taken['rounding']}" if taken["rounding_matters"] else taken["rounding"])
    console.note(f"The model of iteration {taken['iteration']:,} of {taken['total']:,}:")
    console.say(taken["folder"])


@takes_options(Conversion)
def convert(values: Mapping[str, Any], *, json: Json = False) -> None:
    """Convert a checkpoint from any known format to another, at any tensor- and pipeline-parallel size."""
    from medsft.core.run.launch import run_engine

    conversion = Conversion.of(values)
    look_at_source(conversion)  # what is wrong with the request is said before torch is loaded
    with busy("converting"):
        result = run_engine("convert", [conversion.to_json()])
    if json:
        console.print_json_text(result)
    else:
        _print_conversion(result)


def _print_conversion(result: str) -> None:
    import json

    from medsft.core.units import byte_size, counted, short_count

    record = json.loads(result)
    size = f"{short_count(record['parameters'])} parameters, {byte_size(record['bytes'])}, {record['dtype']}"
    console.say(f"{record['destination']}: {record['format']}, {size}, {record['vocab_size']} tokens")
    if record["created_rows"]:
        console.note(f"Rows were made for {counted(len(record['created_rows']), 'new token')}.")
    if record["largest_logit_difference"] is not None:
        console.note(f"Verified: logits differ by at most {record['largest_logit_difference']:.2g}.")
    for warning in record["warnings"]:
        console.note(f"warning: {warning}")


@takes_options(Merge)
def merge(values: Mapping[str, Any], *, json: Json = False) -> None:
    """Merge a LoRA adapter, of medsft or PEFT, into its base model: a Hugging Face folder that needs no adapter."""
    from medsft.core.run.launch import run_engine

    job = Merge.of(values)
    look_at_merge(job)
    with busy("merging"):
        result = run_engine("merge", [job.to_json()])
    if json:
        console.print_json_text(result)
    else:
        _print_merged(loads(result))


def _print_merged(record: dict[str, Any]) -> None:
    from medsft.core.units import byte_size, short_count

    size = f"{short_count(record['parameters'])} parameters, {byte_size(record['bytes'])}, {record['dtype']}"
    console.say(f"{record['destination']}: {size}, {record['vocab_size']} tokens; base {record['base']}")
    for note in record["notes"]:
        console.note(note)
    for warning in record["warnings"]:
        console.note(f"warning: {warning}")


@contextmanager
def busy(words: str, *, plain: bool = False) -> Iterator[None]:
    """Show that something is going on, and for how long, on standard error."""
    if console.wants_lines(plain):
        console.note(f"{words} ...")
        yield
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console.note_console(), transient=True) as progress:
        progress.add_task(words, total=None)
        yield
