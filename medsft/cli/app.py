"""The table of commands."""

from __future__ import annotations

from typing import Annotated

import typer

from medsft.cli import ask, check, console, data, demo, doctor, eval, models, runs, settings, train
from medsft.cli.guard import Guard

_TRAIN, _RUNS, _MODELS, _MORE = "Train", "Runs", "Models and settings", "This machine"

app = typer.Typer(
    name="medsft",
    cls=Guard,
    help="Fine-tune a Llama-family medical language model on questions and answers, conversations or texts.",
    epilog="For a first run, in this order: checkpoints add, check, plan, sft; then ask and eval.",
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something goes wrong.")] = False,
) -> None:
    """Fine-tune a Llama-family medical language model on questions and answers, conversations or texts.

    Without a command, in a terminal: the wizard.
    """
    if version:
        from medsft import __version__

        console.say(f"medsft {__version__}")
    elif context.invoked_subcommand is None:
        if console.interactive():
            runs.wizard()
        else:
            console.say(context.get_help())


def _add_commands() -> None:
    for panel, commands in {
        _TRAIN: (runs.wizard, train.sft, train.plan, train.rehearse, data.tokenize, data.inspect, check.check),
        _RUNS: (runs.runs, runs.watch, runs.stop, train.resume, ask.ask, runs.serve),
        _MODELS: (models.export, models.convert, models.merge, eval.eval),
        _MORE: (doctor.doctor, demo.demo),
    }.items():
        for command in commands:
            app.command(rich_help_panel=panel)(command)
    app.add_typer(settings.checkpoints, name="checkpoints", rich_help_panel=_MODELS)
    app.add_typer(settings.datasets, name="datasets", rich_help_panel=_MODELS)


_add_commands()
