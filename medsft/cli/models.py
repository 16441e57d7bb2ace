"""`medsft export` and `medsft convert`: finished models and other formats. The work is done by an engine process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from medsft.cli import console
from medsft.cli.flags import DEFAULT_RUNS_FOLDER, Run, RunsFolder, find_run

FORMATS = ("hf", "megatron", "dcp")
DTYPES = ("keep", "bf16", "fp32")
TensorLevel = Annotated[int, typer.Option("--tp", metavar="N", min=1, help="Tensor-parallel level of a megatron folder.")]
PipelineLevel = Annotated[int, typer.Option("--pp", metavar="N", min=1, help="Pipeline level of a megatron folder.")]
Dtype = Annotated[str, typer.Option("--dtype", metavar="|".join(DTYPES), help="Number format of the weights.")]


def export(
    run: Run,
    *,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="New folder for the model.")],
    iteration: Annotated[
        int | None, typer.Option("--iteration", metavar="N", help="Checkpoint to export; the latest when not given.")
    ] = None,
    save_checkpoint_dir: RunsFolder = DEFAULT_RUNS_FOLDER,
) -> None:
    """Write a run's model as a Hugging Face folder, with tokenizer, chat template, model card and manifest.

    For other formats: medsft convert RUN DIR --to megatron.
    """
    found = find_run(run, save_checkpoint_dir)
    _engine("export", "exporting", {"to": to, "iteration": iteration}, str(found.path))


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="Hugging Face or Megatron-LLM folder, run, checkpoint or GGUF file.")
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="New folder.")],
    *,
    to: Annotated[str, typer.Option("--to", metavar="|".join(FORMATS), help="Format to write.")] = "hf",
    tp: TensorLevel = 1,
    pp: PipelineLevel = 1,
    dtype: Dtype = "keep",
    iteration: Annotated[
        int | None, typer.Option("--iteration", metavar="N", help="Saved iteration to read; the latest when not given.")
    ] = None,
    vocab_divisible_by: Annotated[
        int | None, typer.Option("--vocab_divisible_by", metavar="N", help="Pad the vocabulary to a multiple of N times --tp.")
    ] = None,
    true_vocab_size: Annotated[
        int | None, typer.Option("--true_vocab_size", metavar="N", help="Rows of a padded table that belong to tokens.")
    ] = None,
    verify: Annotated[
        bool | None,
        typer.Option("--verify/--no_verify", help="Compare logits before and after; done by default when the model fits."),
    ] = None,
) -> None:
    """Convert a checkpoint from any known format to another, at any tensor and pipeline level."""
    from medsft.errors import ConfigError, Problem

    problems = [
        Problem(flag, f"`{value}` is not one of {', '.join(choices)}")
        for flag, value, choices in (("--to", to, FORMATS), ("--dtype", dtype, DTYPES))
        if value not in choices
    ]
    if to != "megatron" and (tp, pp) != (1, 1):
        problems.append(Problem("--tp, --pp", f"mean nothing for --to {to}", "Only a megatron folder has levels."))
    if problems:
        raise ConfigError(problems)
    options = {"to": to, "tp": tp, "pp": pp, "dtype": dtype, "iteration": iteration}
    options |= {"vocab_divisible_by": vocab_divisible_by, "true_vocab_size": true_vocab_size, "verify": verify}
    _engine("convert", "converting", options, str(source), str(destination))


def _engine(module: str, words: str, options: Mapping[str, Any], *positional: str) -> None:
    from medsft.core.run.launch import run_engine

    with busy(words):
        result = run_engine(module, [*positional, *engine_flags(options)])
    print(result, end="")


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
