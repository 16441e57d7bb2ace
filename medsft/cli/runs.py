"""Commands that look at runs: `wizard`, `runs`, `watch`, `stop`, `serve`. None of them starts training by itself."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from medsft.cli import console
from medsft.cli.flags import DEFAULT_RUNS_FOLDER, Json, JsonLines, Plain, Run, RunsFolder, SettingsFile, find_run


def wizard(settings: SettingsFile = None, save_checkpoint_dir: RunsFolder = DEFAULT_RUNS_FOLDER) -> None:
    """Describe a run step by step, start it and watch it."""
    from medsft.errors import ConfigError, Problem

    if not console.interactive():
        raise ConfigError(
            [Problem("wizard", "needs a terminal", "Use `medsft sft` with flags; `medsft sft --help` lists them.")]
        )
    from medsft.tui.app import run_app

    raise typer.Exit(run_app("wizard", runs_folder=save_checkpoint_dir, settings_file=settings))


def runs(
    save_checkpoint_dir: RunsFolder = DEFAULT_RUNS_FOLDER,
    sizes: Annotated[bool, typer.Option("--sizes", help="A table with the size on disk of each run.")] = False,
    plain: Plain = False,
    json: Json = False,
) -> None:
    """List the runs, the latest first: in a terminal to open, stop, resume, export, compare or delete them."""
    if not (sizes or plain or json) and console.shows_screens():
        from medsft.tui.app import run_app

        raise typer.Exit(run_app("runs", runs_folder=save_checkpoint_dir))
    rows = _rows(save_checkpoint_dir, sizes=sizes)
    if json:
        console.print_json(rows)
    else:
        _print_runs(rows, sizes=sizes)
        for row in rows:
            if row["problem"]:
                console.note(f"{row['name']} is broken: {row['problem']}")
        if not rows:
            console.note(f"There are no runs in {save_checkpoint_dir}.")


def _rows(folder: Path, *, sizes: bool) -> list[dict[str, Any]]:
    from medsft.core.models.run_folder import incomplete
    from medsft.core.run.listing import list_runs, look

    rows: list[dict[str, Any]] = []
    for run in list_runs(folder):
        found = look(run)
        view = found.view
        for iteration in found.checkpoints:
            path = run.checkpoint_path(iteration)
            if problem := incomplete(path):
                console.note(f"warning: {run.path.name}: checkpoint {path.name} is damaged: {problem}")
        row = {
            "name": run.path.name,
            "state": found.state,
            "iteration": view.iteration,
            "total": view.total,
            "loss": view.last("loss"),
            "validation_loss": view.last_eval("loss"),
            "checkpoints": run.whole_checkpoints() if found.checkpoints else [],
            "updated": found.updated,
            "path": run.path,
            "problem": found.problem,
        }
        rows.append(row | {"bytes": run.size_bytes()} if sizes else row)
    return rows


def _print_runs(rows: list[dict[str, Any]], *, sizes: bool) -> None:
    from medsft.core.units import byte_size

    columns = ("run", "state", "iteration", "loss", "validation", "updated", *(("size",) if sizes else ()))
    table = [
        (
            row["name"],
            row["state"],
            f"{row['iteration']}/{row['total']}" if row["total"] else "",
            _number(row["loss"]),
            _number(row["validation_loss"]),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(row["updated"])) if row["updated"] else "",
            *((byte_size(row["bytes"]),) if sizes else ()),
        )
        for row in rows
    ]
    console.print_table(columns, table, numbers=(2, 3, 4, 6))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def watch(
    run: Run, save_checkpoint_dir: RunsFolder = DEFAULT_RUNS_FOLDER, plain: Plain = False, json: JsonLines = False
) -> None:
    """Watch a run: what has happened so far, then each event as it comes. Leaving does not stop the run."""
    found = find_run(run, save_checkpoint_dir)
    if not plain and not json and console.shows_screens():
        from medsft.tui.app import run_app

        raise typer.Exit(run_app("monitor", run=found, runs_folder=save_checkpoint_dir))
    from medsft.cli.progress import print_event_json, print_event_line, show_events

    show_events(found, print_event_json if json else print_event_line)


def stop(
    run: Run,
    save_checkpoint_dir: RunsFolder = DEFAULT_RUNS_FOLDER,
    wait: Annotated[bool, typer.Option("--wait/--no_wait", help="Return when the run has stopped.")] = True,
) -> None:
    """Stop a run gracefully: it finishes its iteration, saves a checkpoint and can be resumed."""
    from medsft.errors import LaunchError

    found = find_run(run, save_checkpoint_dir)
    if not found.alive():
        raise LaunchError(f"{found.path} is not running: it is {found.state(found.view())}.")
    found.request("stop")
    console.note(f"{found.path.name}: asked to stop after this iteration, with a checkpoint.")
    while wait and found.alive():
        time.sleep(0.2)
    if wait:
        from medsft.cli.progress import end_with_outcome

        end_with_outcome(found)


def serve(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Begin with the monitor of this run.")] = None,
    save_checkpoint_dir: RunsFolder = DEFAULT_RUNS_FOLDER,
    port: Annotated[int, typer.Option("--port", help="Port on localhost.", min=1, max=65535)] = 8000,
) -> None:
    """Show the runs and their monitors in a browser, on this machine only, to whoever has the address that is printed.

    From elsewhere, open the same address through an SSH tunnel: ssh -L 8000:127.0.0.1:8000 HOST
    """
    import sys

    from medsft.errors import LaunchError

    view = ["runs"] if run is None else ["watch", str(find_run(run, save_checkpoint_dir).path)]
    try:
        from medsft.tui.browser.server import BrowserServer
    except ImportError:
        raise LaunchError("the monitor in a browser needs textual-serve.", hint="pip install 'medsft[serve]'") from None
    words = [sys.executable, "-m", "medsft", *view, "--save_checkpoint_dir", str(save_checkpoint_dir.resolve())]
    console.note("The address below is a key, made anew each time: whoever has it can stop and delete runs. Ctrl-C ends this.")
    BrowserServer(words, port=port, announce=console.say, tell=console.note).serve()
