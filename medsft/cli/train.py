"""`medsft sft`, `plan`, `resume` and `rehearse`: thin layers over `medsft.core.workflow`."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medsft.cli import console
from medsft.cli.flags import (
    DEFAULT_RUNS_FOLDER,
    Json,
    JsonLines,
    Plain,
    Run,
    RunsFolder,
    SettingsFile,
    Yes,
    find_run,
    takes_config,
)
from medsft.core.config.run_config import RunConfig

if TYPE_CHECKING:
    from medsft.core.planning.plan import RunPlan
    from medsft.core.run.rundir import RunDir

Detach = Annotated[bool, typer.Option("--detach", help="Return when the run has started; `medsft watch` shows it.")]
Ask = Annotated[
    bool, typer.Option("--no_autoaccept_iters", help="Ask whether the number of iterations is right before training.")
]


@takes_config
def sft(
    config: RunConfig,
    *,
    settings: SettingsFile = None,
    no_autoaccept_iters: Ask = False,
    detach: Detach = False,
    plain: Plain = False,
    json: JsonLines = False,
    yes: Yes = False,
    print_commands: Annotated[
        bool, typer.Option("--print_commands", help="Print the command for each node, and do nothing else.")
    ] = False,
    slurm: Annotated[bool, typer.Option("--slurm", help="Print an sbatch script for this run, and do nothing else.")] = False,
) -> None:
    """Fine-tune: tokenize, plan, train or resume, export. The same command resumes a run that was stopped or killed.

    It needs --run_name, --data, --checkpoint and --size; `medsft checkpoints add` gives a base model that name and size.

    The run is a process of its own: closing the terminal does not end it. Ctrl-C stops it with a checkpoint.
    """
    if print_commands or slurm:
        _print_cluster(config, settings, slurm)
        return
    from medsft.cli.stages import note_rows, note_tasks, tokenizing
    from medsft.core.settings import load_settings
    from medsft.core.workflow import prepare_and_start

    with ExitStack() as bar:

        def confirm(plan: RunPlan) -> RunConfig:
            bar.close()  # so that it does not redraw over the question
            return _confirm(plan)

        def on_plan(plan: RunPlan) -> None:
            bar.close()
            note_rows(config)
            note_tasks(plan)
            _note_warnings(plan)
            _note_faults(plan)

        run = prepare_and_start(
            config,
            load_settings(settings),
            progress=bar.enter_context(tokenizing(plain=plain)),
            confirm=confirm if no_autoaccept_iters and not yes else None,
            on_plan=on_plan,
            on_status=console.note,
        )
    _show(run, config.rank, detach=detach, plain=plain, json=json)


def _print_cluster(config: RunConfig, settings: Path | None, slurm: bool) -> None:
    from medsft.core.cluster.scripts import ADDR_PLACEHOLDER, node_commands, slurm_script
    from medsft.core.config.check import check
    from medsft.core.planning.folders import check_places
    from medsft.errors import ConfigError

    problems = check(replace(config, addr=config.addr or ADDR_PLACEHOLDER)) + check_places(config)
    if problems:
        raise ConfigError(problems)
    console.say(slurm_script(config, settings).rstrip("\n") if slurm else "\n".join(node_commands(config, settings)))


def _confirm(plan: RunPlan) -> RunConfig:
    """Ask, and return the config with the accepted number of iterations."""
    from medsft.cli.confirm import confirm_iterations

    accepted = confirm_iterations(plan.num_iterations)
    return plan.config if accepted == plan.num_iterations else replace(plan.config, iters=accepted)


def _note_warnings(plan: RunPlan) -> None:
    for warning in plan.warnings:
        console.note(f"warning: {warning}")


def _note_faults(plan: RunPlan) -> None:
    """Say what a quick look at the rows finds, once: before the first start of a run."""
    from medsft.core.workflow import existing_plan, faults_in_rows
    from medsft.errors import DataError

    try:
        found = faults_in_rows(plan.config) if existing_plan(plan) is None else ""
    except DataError as error:  # a file that has changed since it was tokenized: the set has all that is trained on
        found = f"the rows could not be looked at once more: {error.message}"
    if found:
        console.note(f"warning: {found}")


def _show(run: RunDir, node: int, *, detach: bool, plain: bool, json: bool) -> None:
    """Show a run that was just started on this node, to its end or with `detach` not at all."""
    from medsft.cli.progress import run_in_foreground
    from medsft.core.run.launch import load_launched_plan, read_launch
    from medsft.core.units import counted

    launch, plan = read_launch(run), load_launched_plan(run)
    console.note(f"{run.path}: {counted(plan.num_iterations, 'iteration')}, {plan.layout}, {plan.precision}")
    if detach:
        console.note(f"Watch it: medsft watch {run.path}")
        console.say(str(run.path))
    else:
        run_in_foreground(run, after=launch.after, plain=plain, json=json, node=node)


@takes_config
def plan(
    config: RunConfig,
    *,
    settings: SettingsFile = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Write the plan as JSON to this file.")
    ] = None,
    json: Json = False,
) -> None:
    """Show what a run would be: iterations, layout, memory, disk, time. Trains nothing.

    Before anything is tokenized, documents and tokens are estimated from the files of rows. The folder of the base model may
    hold its config.json alone; the devices are then assumed, and a warning names them.
    """
    from medsft.cli.plan_table import print_plan
    from medsft.cli.stages import note_rows, note_tasks
    from medsft.core.disk import writing
    from medsft.core.evaluation.tasks.of_run import plan_run
    from medsft.core.files import write_atomically
    from medsft.core.settings import load_settings
    from medsft.core.workflow import trust_sets

    loaded = load_settings(settings)
    trust_sets(config, loaded)
    planned = plan_run(config, loaded, ahead=True)
    if output is not None:
        with writing(output, "--output"):
            write_atomically(output, planned.to_json())
    if json:
        console.print_json_text(planned.to_json())
    else:
        print_plan(planned)
        note_rows(config)
        note_tasks(planned)


def resume(
    run: Run,
    *,
    save_checkpoint_dir: RunsFolder = DEFAULT_RUNS_FOLDER,
    tp: Annotated[int | None, typer.Option("--tp", metavar="N", help="Another tensor-parallel size.")] = None,
    pp: Annotated[int | None, typer.Option("--pp", metavar="N", help="Another pipeline-parallel size.")] = None,
    nproc_per_node: Annotated[
        int | None, typer.Option("--nproc_per_node", metavar="N", help="Another number of processes on each node.")
    ] = None,
    micro_batch: Annotated[
        int | None, typer.Option("--micro_batch", metavar="N", help="Another number of documents in a forward pass.")
    ] = None,
    nodes: Annotated[int | None, typer.Option("--nodes", metavar="N", help="Another number of nodes.")] = None,
    rank: Annotated[int | None, typer.Option("--rank", metavar="N", help="Number of this node, from 0.")] = None,
    addr: Annotated[str | None, typer.Option("--addr", metavar="TEXT", help="Address of node 0.")] = None,
    port: Annotated[int | None, typer.Option("--port", metavar="N", help="Port on node 0.")] = None,
    detach: Detach = False,
    plain: Plain = False,
    json: JsonLines = False,
) -> None:
    """Resume a run from its latest intact checkpoint, at its own layout or at another."""
    from medsft.core import workflow
    from medsft.core.planning.plan import RunPlan

    found = find_run(run, save_checkpoint_dir)
    changes: dict[str, Any] = {"tp": tp, "pp": pp, "nproc_per_node": nproc_per_node, "micro_batch": micro_batch}
    changes |= {"nodes": nodes, "rank": rank, "addr": addr, "port": port}
    changed = workflow.resume(found, **{name: value for name, value in changes.items() if value is not None})
    before = RunPlan.read(found.plan_path).layout
    if changed.layout != before:
        console.note(f"Resharding from {before} to {changed.layout}.")
    _note_warnings(changed)
    started = workflow.start(changed, on_status=console.note)
    _show(started, changed.config.rank, detach=detach, plain=plain, json=json)


@takes_config
def rehearse(
    config: RunConfig,
    *,
    settings: SettingsFile = None,
    at: Annotated[
        list[str] | None, typer.Option("--at", metavar="tp=N,pp=N", help="Also resume at this layout; may be repeated.")
    ] = None,
    plain: Plain = False,
    json: Json = False,
) -> None:
    """Check before a long run that it fits into memory, saves and resumes, and forecast its time and disk space.

    Six iterations of this very run, two of them on its heaviest documents; a save, a kill, a resume; then all is removed.
    """
    from medsft.cli.plan_table import print_rehearsal
    from medsft.cli.stages import tokenizing
    from medsft.core.evaluation.tasks.of_run import read_tasks
    from medsft.core.rehearsal import rehearse as rehearse_run
    from medsft.core.settings import load_settings
    from medsft.core.workflow import tokenize_sets
    from medsft.errors import TrainingError

    loaded, changes = load_settings(settings), [_layout_changes(text) for text in at or ()]
    read_tasks(config)  # as a run does, before rows are tokenized
    with tokenizing(plain=plain) as progress:
        tokenize_sets(config, loaded, progress=progress)
    result = rehearse_run(config, loaded, at=changes, on_status=console.note)
    if json:
        from dataclasses import asdict

        console.print_json(asdict(result) | {"problems": result.problems})
    else:
        print_rehearsal(result)
    if result.problems:
        raise TrainingError("The rehearsal found that this run will not work:\n" + "\n".join(result.problems))


def _layout_changes(text: str) -> dict[str, int]:
    """Return {"tp": 1, "pp": 2} for `tp=1,pp=2`. Raises `ConfigError`."""
    from medsft.errors import ConfigError, Problem

    changes = {}
    for part in text.split(","):
        name, _, number = part.strip().partition("=")
        if name not in ("tp", "pp", "nproc_per_node", "micro_batch") or not number.isdecimal() or int(number) < 1:
            raise ConfigError([Problem("--at", f"`{text}` is not a layout", "Such as tp=1,pp=2 or nproc_per_node=4.")])
        changes[name] = int(number)
    return changes
