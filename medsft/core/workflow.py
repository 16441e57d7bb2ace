"""From a config to a running run: tokenize, plan, check what is there, start. What the CLI, the wizard and scripts call.

prepare_and_start(config)  =  on node 0: prepare (tokenize_sets, plan_run, compare)  ->  on every node: start
resume(run), start(plan)      the same for a run that exists
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from medsft.core.cluster.connection import StatusCallback
from medsft.core.cluster.rendezvous import start_node
from medsft.core.config.check import check
from medsft.core.config.row_options import check_row_options
from medsft.core.config.run_config import RunConfig
from medsft.core.data.dataset.dataset import set_exists
from medsft.core.data.dataset.manifest import read_manifest
from medsft.core.data.dataset.spec import TokenizeSpec
from medsft.core.data.dataset.tokenize import tokenize
from medsft.core.data.dataset.write import ProgressCallback
from medsft.core.data.sources.row_format import RowFormat
from medsft.core.data.tokenizers.open import no_tokenizer_beside
from medsft.core.evaluation.tasks.of_run import plan_run, read_tasks
from medsft.core.models import run_folder
from medsft.core.planning.base import find_base
from medsft.core.planning.folders import check_places
from medsft.core.planning.plan import RunPlan, difference
from medsft.core.planning.planner import replan
from medsft.core.planning.sets import (
    has_validation_set,
    recognize_rows,
    refuse_other_rows,
    training_folder,
    validation_folder,
)
from medsft.core.run.events import Event, tail
from medsft.core.run.exports import look_at_export
from medsft.core.run.launch import load_plan, with_latest_options
from medsft.core.run.rundir import RunDir
from medsft.core.run.view import RunView
from medsft.core.settings import Settings, check_with_settings
from medsft.errors import AlreadyFinishedError, ConfigError, MismatchError, Problem

if TYPE_CHECKING:  # the patterns of the screen for identifiers take a tenth of a second
    from medsft.core.data.check.check import CheckRequest

_QUICK_LOOK_SECONDS = 2.0
"""Before a run starts. Some 4,000 rows like PubMedQA's, all of a small file."""


def tokenize_sets(
    config: RunConfig, settings: Settings, *, tokenizer: Path | None = None, progress: ProgressCallback | None = None
) -> None:
    """Make or check the tokenized sets of a run: `RUN_NAME`, and `RUN_NAME-val` when there is validation data or that set.

    With `tokenizer` no base model is needed. Raises `ConfigError`, `DataError` or `MismatchError`.
    """
    problems = [*(check(config) if tokenizer else check_with_settings(config, settings)), *check_places(config)]
    if problems:
        raise ConfigError(problems)
    sets = [(config.data_files, training_folder(config))]
    if config.val_files or has_validation_set(config):
        sets.append((config.val_files, validation_folder(config)))
    refuse_other_rows(config)
    for files, folder in sets:
        _tokenize(config, spec_for(config, settings, files, tokenizer=tokenizer), folder, progress)


def trust_sets(config: RunConfig, settings: Settings) -> None:
    """Check the sets of another program that a run would use and remember them, if `--trust_cache` asks for it.

    Raises `ConfigError`, `DataError` or `MismatchError`.
    """
    for folder in (training_folder(config), validation_folder(config)):
        if config.trust_cache and set_exists(folder) and read_manifest(folder) is None:
            _tokenize(config, spec_for(config, settings), folder)


def _tokenize(config: RunConfig, spec: TokenizeSpec, folder: Path, progress: ProgressCallback | None = None) -> None:
    tokenize(
        spec,
        folder,
        retokenize=config.retokenize,
        trust_cache=config.trust_cache,
        document_index=config.rules.document_index,
        progress=progress,
    )


def spec_for(
    config: RunConfig, settings: Settings, data: tuple[Path, ...] = (), *, tokenizer: Path | None = None
) -> TokenizeSpec:
    """Return how `config` wants these files tokenized, which are of its own; `tokenizer` stands in for the base model's.

    Without files the row format means nothing, and none is looked at: those of a run may be gone. Raises `DataError`.
    """
    return TokenizeSpec(
        data=data,
        tokenizer=tokenizer or _tokenizer(config, settings),
        template=config.template,
        rows=recognize_rows(config).rows_of(data) if data else RowFormat(),
        bad_rows=config.bad_rows,  # type: ignore[arg-type]
        special_in_text=config.rules.special_in_text or config.special_in_text,  # type: ignore[arg-type]
        turns=config.turns,  # type: ignore[arg-type]
        prefer_model_file=config.rules.prefers_tokenizer_model,
        template_date=config.template_date or "",
    )


def check_request(config: RunConfig, *, against: tuple[Path, ...] = (), ngram: int = 8) -> CheckRequest:
    """Return what `check_rows` is to look at: the rows of `config`, beside its validation rows and those of `against`.

    Raises `ConfigError` when there are no rows, two flags name the same file, or options of rows contradict each other.
    """
    from medsft.core.data.check.check import CheckRequest

    files = {path.resolve() for path in config.data_files}
    problems = [
        Problem(flag, f"{path} is among the rows that are looked at, too", "Name other rows to compare with.")
        for flag, paths in (("--val", config.val_files), ("--against", against))
        for path in paths
        if path.resolve() in files
    ]
    problems += check_row_options(config.format, config.row_options, files=len(config.data) + len(config.val_files))
    if not config.data:
        problems.append(Problem("FILE", "no rows are named", "Such as: medsft check train.jsonl"))
    if problems:
        raise ConfigError(problems)
    rows = recognize_rows(config).rows
    return CheckRequest(files=config.data_files, rows=rows, val=config.val_files, against=against, ngram=ngram)


def faults_in_rows(config: RunConfig) -> str:
    """Return in a sentence what a quick look at the rows of a run finds; "" when that is nothing, or there are no rows."""
    from medsft.core.data.check.check import CheckRequest, quick_check
    from medsft.core.data.check.kinds import AT_START

    if not config.data:
        return ""
    request = CheckRequest(files=config.data_files, rows=recognize_rows(config).rows_of(config.data_files))
    found = quick_check(request, seconds=_QUICK_LOOK_SECONDS).summary(AT_START)
    return found and f"--data: {found}. `medsft check` looks at all rows and shows where they are."


def _tokenizer(config: RunConfig, settings: Settings) -> Path:
    entry = settings.find_checkpoint(config.checkpoint, config.size)
    if entry.tokenizer:
        return entry.tokenizer
    base = find_base(entry, config, ahead=False)
    if base.tokenizer is None:
        raise no_tokenizer_beside(base.weights)
    return base.tokenizer


def prepare(
    config: RunConfig,
    settings: Settings,
    *,
    progress: ProgressCallback | None = None,
    confirm: Callable[[RunPlan], RunConfig] | None = None,
) -> RunPlan:
    """Tokenize and plan, and compare with what exists. `confirm` may ask a person and return a config with other `iters`.

    A run that exists keeps its number of iterations. Raises `AlreadyFinishedError`, or `MismatchError` with every difference
    between this plan and the one that the existing run has, and what `confirm` raises.
    """
    read_tasks(config)  # what is wrong with a benchmark is said before rows are tokenized for an hour
    tokenize_sets(config, settings, progress=progress)
    plan = plan_run(config, settings)
    existing = existing_plan(plan)
    if confirm is not None:
        accepted = replace(config, iters=existing.config.iters) if existing else confirm(plan)
        plan = plan if accepted in (config, plan.config) else plan_run(accepted, settings)
    check_against_existing(plan)
    return plan


def prepare_and_start(
    config: RunConfig,
    settings: Settings,
    *,
    progress: ProgressCallback | None = None,
    confirm: Callable[[RunPlan], RunConfig] | None = None,
    on_plan: Callable[[RunPlan], None] = lambda _: None,
    on_status: StatusCallback = lambda _: None,
) -> RunDir:
    """Do what `prepare` does and start the run, or this node's part of it, and return when it has started.

    With several nodes, call it on each: node 0 prepares when all have connected. `on_plan` gets the plan there before it
    starts, and may raise; `on_status` gets a line for each thing that is waited for. Raises what `prepare` and `start` raise.
    """

    def make() -> RunPlan:
        plan = prepare(config, settings, progress=progress, confirm=confirm)
        on_plan(plan)
        return plan

    return start_node(config, make, on_status=on_status)


def start(plan: RunPlan, *, on_status: StatusCallback = lambda _: None) -> RunDir:
    """Start the run of a plan, or this node's part of it, and return when it has started.

    With several nodes, call it on each. A run that exists must have the same identity: `prepare` and `resume` check that.
    Raises `LaunchError` when it is running already or a node does not connect, `MismatchError` when the nodes differ.
    """
    return start_node(plan.config, lambda: plan, on_status=on_status)


def existing_plan(plan: RunPlan) -> RunPlan | None:
    """Return the plan of the run that is in this plan's folder, or None.

    A damaged one is as good as none where the checkpoints are of this plan, or there are none: it can be written anew. Raises
    `MismatchError` where that is not so.
    """
    run = RunDir(Path(plan.run_dir))
    if not run.exists():
        return None
    try:
        return load_plan(run)
    except MismatchError as error:
        whole = run.latest_checkpoint()
        if whole is None or run_folder.read_manifest(run.checkpoint_path(whole)).get("identity") == plan.identity:
            return None
        raise MismatchError(error.message, hint="Its checkpoints are of another plan than these flags make.") from None


def check_against_existing(plan: RunPlan) -> None:
    """Raise `AlreadyFinishedError` or `MismatchError` unless `plan` may start or go on in its folder.

    A run whose model is damaged may go on, to export it again; so may one that was killed before it could log its end.
    """
    run = RunDir(Path(plan.run_dir))
    existing, found = existing_plan(plan), look_at_export(plan, run)
    logged = not run.exists() or run.view().outcome == "finished"
    if found.there and not found.damage and (logged or not found.of_this_plan):
        message = f"This run is finished; its model is in {plan.export_dir}"
        hint = "To train it once more beside the first, give it a name of its own: --id NAME"
        if existing is not None and (changes := difference(existing, plan)):
            message += "\nIt was trained with something else than is asked for now:\n" + _listed(changes)
            hint = "To train with what is asked for now, give that run a name of its own: --id NAME"
        raise AlreadyFinishedError(message, hint=hint)
    if found.there and found.damage and run.latest_checkpoint() is None:
        raise MismatchError(
            f"{plan.export_dir} is damaged: {found.damage}. There is no checkpoint any more to export it from again.",
            hint="Move it away to train once more.",
        )
    if existing is None or existing.identity == plan.identity:
        return
    raise MismatchError(
        f"{plan.run_dir} holds a run with another plan:\n{_listed(difference(existing, plan))}",
        hint="Go on with what it was planned with, or start another run beside it: --id NAME",
    )


def _listed(lines: Iterable[str]) -> str:
    return "\n".join(f"    {line}" for line in lines)


def run(config: RunConfig, settings: Settings, *, progress: ProgressCallback | None = None) -> RunView:
    """Do it all and wait for the end: tokenize, plan, train or go on, export. Returns the view of the ended run.

    With several nodes, call it on each. Raises what `prepare_and_start` raises; a run that failed is returned with
    `outcome == "failed"`.
    """
    folder = prepare_and_start(config, settings, progress=progress)
    for _ in follow(folder, node=config.rank):
        pass
    return folder.view()


def follow(folder: RunDir, *, node: int = 0) -> Iterator[Event]:
    """Yield the events of a run from its first on, until no process works on it any more (on this node, if it is not 0)."""
    return tail(folder.events_path, ended=lambda: not folder.alive(node))


def resume(folder: RunDir, **changes: object) -> RunPlan:
    """Return the plan to go on with: the run's own, with `changes` to fields that do not make it another run (`tp`, `pp`, ...).

    Raises `AlreadyFinishedError`, `ConfigError` for a layout that cannot work, or `MismatchError` when its data or base model
    have changed.
    """
    recorded = with_latest_options(folder, RunPlan.read(folder.plan_path))
    plan = replan(recorded, run_dir=folder.path, changes=changes)
    check_against_existing(plan)
    return plan
