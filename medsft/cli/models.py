"""`medsft export` and `medsft convert`: finished models and other formats. The work is done by an engine process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from json import loads
from pathlib import Path
from typing import Annotated, Any

import typer

from medsft.cli import console
from medsft.cli.flags import DEFAULT_RUNS_FOLDER, Json, Run, RunsFolder, find_run

FORMATS = ("hf", "megatron", "dcp")
DTYPES = ("keep", "bf16", "fp32")
_TO, _FROM = "To a Megatron-LLM folder", "From a Megatron-LLM folder"


def _number(name: str, help_text: str, panel: str | None = None, *, least: int | None = None) -> Any:
    return typer.Option(name, metavar="N", help=help_text, rich_help_panel=panel, min=least)


def export(
    run: Run,
    *,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="New folder for the model.")],
    iteration: Annotated[
        int | None, _number("--iteration", "Checkpoint to export; the latest when not given.", least=1)
    ] = None,
    save_checkpoint_dir: RunsFolder = DEFAULT_RUNS_FOLDER,
) -> None:
    """Write a run's model as a Hugging Face folder, with tokenizer, chat template, model card and manifest.

    For other formats: medsft convert RUN DIR --to megatron.
    """
    from medsft.core.run.launch import run_engine

    found = find_run(run, save_checkpoint_dir)
    with busy("exporting"):
        result = run_engine("export", [str(found.path), *engine_flags({"to": to, "iteration": iteration})])
    taken = loads(result)
    for line in taken["passed_over"]:
        console.note(f"warning: {line}")
    console.note(f"The model of iteration {taken['iteration']:,} of {taken['total']:,}:")
    console.say(taken["folder"])


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="Hugging Face or Megatron-LLM folder, run, checkpoint or GGUF file.")
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="New folder.")],
    *,
    to: Annotated[str, typer.Option("--to", metavar="CHOICE", help="Format to write: hf, megatron or dcp.")],
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="CHOICE", help="Number format of the weights: keep, bf16 or fp32.")
    ] = "keep",
    iteration: Annotated[
        int | None, _number("--iteration", "Saved iteration to read; the latest when not given.", least=0)
    ] = None,
    true_vocab_size: Annotated[
        int | None,
        _number("--true_vocab_size", "Rows that belong to tokens: more are cut off, missing ones are made.", least=1),
    ] = None,
    vocab_divisible_by: Annotated[
        int | None,
        _number("--vocab_divisible_by", "Pad the vocabulary to a multiple of N (times --tp); megatron: 128.", least=1),
    ] = None,
    new_token_init: Annotated[
        str, typer.Option("--new_token_init", metavar="CHOICE", help="Rows of new tokens: mean or copy_last.")
    ] = "mean",
    verify: Annotated[
        bool | None,
        typer.Option("--verify/--no_verify", help="Compare logits before and after; done by default when the model fits."),
    ] = None,
    tp: Annotated[int, _number("--tp", "Tensor-parallel level.", _TO, least=1)] = 1,
    pp: Annotated[int, _number("--pp", "Pipeline level.", _TO, least=1)] = 1,
    as_iteration: Annotated[
        int | None,
        _number("--as_iteration", "Iteration to write it as, 0 for `release`; the source's when not given.", _TO, least=0),
    ] = None,
    optimizer: Annotated[
        bool, typer.Option("--optimizer", help="From a run: optimiser and schedule too, to go on there.", rich_help_panel=_TO)
    ] = False,
    norm_eps: Annotated[float | None, _number("--norm_eps", "Norm epsilon, where the files are wrong.", _FROM)] = None,
    rope_theta: Annotated[float | None, _number("--rope_theta", "Rotary base, where the files are wrong.", _FROM)] = None,
    rope_scaling_factor: Annotated[
        float | None, _number("--rope_scaling_factor", "Rotary scaling, where the files are wrong.", _FROM)
    ] = None,
    legacy_rotary: Annotated[
        bool, typer.Option("--legacy_rotary", help="Rows are in the order of the old rotary code.", rich_help_panel=_FROM)
    ] = False,
    json: Json = False,
) -> None:
    """Convert a checkpoint from any known format to another, at any tensor and pipeline level."""
    from medsft.core.run.launch import run_engine

    options = {
        **{"to": to, "dtype": dtype, "iteration": iteration, "true_vocab_size": true_vocab_size, "verify": verify},
        **{"vocab_divisible_by": vocab_divisible_by, "new_token_init": new_token_init, "tp": tp, "pp": pp},
        **{"as_iteration": as_iteration, "optimizer": optimizer or None, "norm_eps": norm_eps, "rope_theta": rope_theta},
        **{"rope_scaling_factor": rope_scaling_factor, "legacy_rotary": legacy_rotary or None},
    }
    _check_choices(
        {"--to": (to, FORMATS), "--dtype": (dtype, DTYPES), "--new_token_init": (new_token_init, ("mean", "copy_last"))}
    )
    _check_above_zero({"--norm_eps": norm_eps, "--rope_theta": rope_theta, "--rope_scaling_factor": rope_scaling_factor})
    with busy("converting"):
        result = run_engine("convert", [str(source), str(destination), *engine_flags(options)])
    if json:
        console.print_json_text(result)
    else:
        _print_conversion(result)


def _check_choices(options: Mapping[str, tuple[str, Sequence[str]]]) -> None:
    """Raise `ConfigError` for each flag whose value is none of its choices."""
    from medsft.errors import ConfigError, Problem

    problems = [
        Problem(flag, f"`{value}` is not one of {', '.join(choices)}")
        for flag, (value, choices) in options.items()
        if value not in choices
    ]
    if problems:
        raise ConfigError(problems)


def _check_above_zero(options: Mapping[str, float | None]) -> None:
    """Raise `ConfigError` for each number that is not above 0 and finite."""
    from medsft.errors import ConfigError, Problem

    problems = [
        Problem(flag, f"{number:g} is no such number", "Must be above 0, and finite.")
        for flag, number in options.items()
        if number is not None and not 0 < number < float("inf")
    ]
    if problems:
        raise ConfigError(problems)


def _print_conversion(result: str) -> None:
    import json

    from medsft.core.units import byte_size, short_count

    record = json.loads(result)
    size = f"{short_count(record['parameters'])} parameters, {byte_size(record['bytes'])}, {record['dtype']}"
    console.say(f"{record['destination']}: {record['format']}, {size}, {record['vocab_size']} tokens")
    if record["created_rows"]:
        console.note(f"Rows were made for {len(record['created_rows'])} new tokens.")
    if record["largest_logit_difference"] is not None:
        console.note(f"Verified: logits differ by at most {record['largest_logit_difference']:.2g}.")
    for warning in record["warnings"]:
        console.note(f"warning: {warning}")


def engine_flags(options: Mapping[str, Any]) -> list[str]:
    """Return `--name value` for what was given; True is `--name`, False `--no_name`, None is left out."""
    words: list[str] = []
    for name, value in options.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no_{name}")
        elif value is not None:
            words += [f"--{name}", str(value)]
    return words


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
