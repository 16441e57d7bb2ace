"""`medsft eval`: how good models are, and whether one is better than another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from medsft.cli import console
from medsft.cli.flags import DEFAULT_RUNS_FOLDER, Iteration, Json, ModelPrecision, Plain, QuestionKey, RunsFolder, find_run

if TYPE_CHECKING:
    from medsft.core.evaluation.benchmark import Task
    from medsft.core.evaluation.evaluate import AskProgress, Evaluation

_SECONDS_BETWEEN_LINES = 5.0


def eval(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Runs, folders of models or adapters, GGUF files; several are compared."),
    ],
    *,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            metavar="NAME|FILE",
            help="pubmedqa, medqa, medmcqa or mmlu, each with a --data; or a FILE of questions of your own. May be repeated.",
        ),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", metavar="PATH...", help="File or folder of each named --task, in their order."),
    ] = None,
    question_key: QuestionKey = None,
    answer_key: Annotated[
        str | None, typer.Option("--answer_key", metavar="KEY", help="Key of the answer in rows of your own.")
    ] = None,
    options_key: Annotated[
        str | None,
        typer.Option("--options_key", metavar="KEY", help="Key of the options in them, or several: opa,opb,opc,opd."),
    ] = None,
    first_option: Annotated[
        int | None,
        typer.Option(
            "--first_option", metavar="0|1", min=0, max=1, help="Number of their first option, where answers are numbers."
        ),
    ] = None,
    with_: Annotated[
        Literal["base"] | None, typer.Option("--with", metavar="base", help="Ask the base model of each run, too.")
    ] = None,
    method: Annotated[
        Literal["likelihood", "generate", "both"],
        typer.Option("--method", help="Which option is most likely; which one a written answer names; or both."),
    ] = "likelihood",
    score: Annotated[
        Literal["label", "text", "both"],
        typer.Option("--score", help="Likelihood of an option's letter, of its text a byte, or both."),
    ] = "both",
    prompt: Annotated[
        Literal["template", "lm-eval"],
        typer.Option("--prompt", help="The template that the model was trained with, or lm-evaluation-harness's text."),
    ] = "template",
    shots: Annotated[int, typer.Option("--shots", metavar="N", min=0, help="Solved examples before each question.")] = 0,
    shifts: Annotated[
        Literal["all"] | None,
        typer.Option("--shifts", metavar="all", help="Ask with the options in all cyclic orders, too: is a place preferred?"),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="Ask so many questions of each task, drawn by --seed.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of what is drawn: examples, and --limit.")] = 1234,
    max_new_tokens: Annotated[
        int, typer.Option("--max_new_tokens", metavar="N", min=1, help="Longest written answer, in tokens.")
    ] = 256,
    precision: ModelPrecision = "auto",
    tp: Annotated[
        int, typer.Option("--tp", metavar="N", min=1, help="Divide a large model over N processes or GPUs, for likelihoods.")
    ] = 1,
    pp: Annotated[
        int, typer.Option("--pp", metavar="N", min=1, help="Divide its layers over N, for likelihoods; on --tp each.")
    ] = 1,
    iteration: Iteration = None,
    save_checkpoint_dir: RunsFolder = DEFAULT_RUNS_FOLDER,
    plain: Plain = False,
    json: Json = False,
) -> None:
    """Ask models the questions of benchmarks, offline: how many are right, how certain that is, and which model is better.

    Questions of your own are rows with question, options and answer, or with a question and an answer in words; keys that are
    called otherwise are named by --question_key and its like.

    Results go to eval/ beside the model, without any text of the questions. A call that was killed goes on where it was.
    """
    from medsft.cli.stages import tokenizing
    from medsft.core.evaluation.asking import Ask
    from medsft.core.evaluation.benchmark import sampled
    from medsft.core.evaluation.evaluate import evaluate, find_candidates
    from medsft.core.evaluation.requests import answer, default_precision
    from medsft.core.planning.layout import Layout

    keys = {"question_key": question_key, "answer_key": answer_key, "options_key": options_key, "first_option": first_option}
    asked = [sampled(one, limit, seed) for one in _tasks(task or [], data or [], keys)]
    paths = [_path(text, save_checkpoint_dir) for text in models]
    candidates = find_candidates(paths, iteration=iteration, with_base=with_ == "base")
    ask = Ask(
        style=prompt,
        methods=("likelihood", "generate") if method == "both" else (method,),
        forms=("label", "text") if score == "both" else (score,),
        shifts=shifts is not None,
        shots=shots,
        seed=seed,
        max_new_tokens=max_new_tokens,
    )
    chosen = default_precision() if precision == "auto" else precision
    layout = Layout(tp=tp, pp=pp)
    with _asking(plain=plain) as progress, tokenizing(plain=plain) as looking:
        evaluation = evaluate(
            candidates,
            asked,
            ask,
            lambda source, requests, keep: answer(source, requests, precision=chosen, layout=layout, keep=keep),
            precision=chosen,
            progress=progress,
            looking=looking,
            note=console.note,
        )
    if json:
        console.print_json(
            {
                "results": [result.to_json() for result in evaluation.results],
                "pairs": [pair.to_json() for pair in evaluation.pairs],
                "files": [str(file) for file in evaluation.files],
                "notes": evaluation.notes,
            }
        )
    else:
        _print(evaluation)


def _tasks(names: Sequence[str], data: Sequence[Path], keys: Mapping[str, object]) -> list[Task]:
    """Read the tasks; a named one takes the next file of --data, and others have these keys. Raises ConfigError, DataError."""
    from medsft.core.config.row_options import check_row_options
    from medsft.core.data.sources.row_looks import RowOptions
    from medsft.core.evaluation.tasks.own import named_apart
    from medsft.core.evaluation.tasks.pubmedqa import TRUTH_NAME
    from medsft.core.evaluation.tasks.read import BENCHMARKS, read_task
    from medsft.errors import ConfigError, Problem

    known = ", ".join(BENCHMARKS)
    if not names:
        raise ConfigError([Problem("--task", "no task is named", f"One of {known}, or a file of questions of your own.")])
    truths = [path for path in data if path.name == TRUTH_NAME]
    files = [path for path in data if path.name != TRUTH_NAME]
    named = [name for name in names if name in BENCHMARKS]
    unknown = [name for name in names if name not in BENCHMARKS and not Path(name).exists()]
    if unknown:
        raise ConfigError([Problem("--task", f"there is no task and no file `{name}`", f"Known: {known}.") for name in unknown])
    if len(files) != len(named):
        answers = f"; {TRUTH_NAME} holds answers, no questions" if truths else ""
        message = f"{len(files)} given for {len(named)} named --task{answers}"
        raise ConfigError(
            [
                Problem(
                    "--data",
                    message,
                    "Each named --task takes one file or folder, in the same order; models stand before all options.",
                )
            ]
        )
    if len(truths) > 1 or (truths and "pubmedqa" not in named):
        raise ConfigError([Problem("--data", f"{truths[0]} belongs to --task pubmedqa", "Give it once, with the rows.")])
    own = len(names) - len(named)
    if given := [name for name, value in keys.items() if value is not None and not own]:
        raise ConfigError([Problem(f"--{name}", "is for a --task FILE with questions of your own") for name in given])
    if problems := check_row_options("auto", keys, files=own):
        raise ConfigError(problems)
    wanted = RowOptions.of("auto", keys)
    rest = iter(files)
    tasks = named_apart(
        [
            read_task(name, next(rest), truth=truths[0] if truths else None)
            if name in BENCHMARKS
            else read_task(name, Path(name), wanted=wanted)
            for name in names
        ]
    )
    repeated = {one.name for one in tasks if sum(other.name == one.name for other in tasks) > 1}
    if repeated:
        raise ConfigError([Problem("--task", f"`{name}` is given twice", "One call for each.") for name in sorted(repeated)])
    return tasks


def _path(text: str, runs_folder: Path) -> Path:
    path = Path(text)
    return path if path.exists() else find_run(text, runs_folder).path


@contextmanager
def _asking(*, plain: bool) -> Iterator[Callable[[AskProgress], None]]:
    """Yield a callback that shows how far a model has come, as a bar or a line every few seconds."""
    if console.wants_lines(plain):
        yield _Lines()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from medsft.core.units import duration

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}"),
    )
    bar = Progress(*columns, console=console.note_console(), expand=True, transient=True)
    shown = bar.add_task("", total=None, left="")

    def show(progress: AskProgress) -> None:
        bar.start()
        left = "" if progress.seconds_left is None else f"{duration(progress.seconds_left)} left"
        bar.update(shown, description=f"asking {progress.model}", total=progress.total, completed=progress.done, left=left)
        if progress.done == progress.total:
            bar.stop()

    try:
        yield show
    finally:
        if bar.live.is_started:
            bar.stop()


class _Lines:
    """Prints a line every few seconds, and at the end of each model."""

    def __init__(self) -> None:
        self._printed = 0.0

    def __call__(self, progress: AskProgress) -> None:
        from medsft.core.units import count, duration

        now = time.monotonic()
        if progress.done < progress.total and now - self._printed < _SECONDS_BETWEEN_LINES:
            return
        self._printed = now
        left = "" if progress.seconds_left is None else f", {duration(progress.seconds_left)} left"
        console.note(f"asking {progress.model}: {count(progress.done)} of {count(progress.total)}{left}")


def _print(evaluation: Evaluation) -> None:
    from medsft.core.evaluation import report

    console.print_table(report.COLUMNS, report.rows(evaluation.results), numbers=report.NUMBERS)
    for result in evaluation.results:
        console.say(f"\n{result.model}, {result.title}, {result.method}:")
        for line in report.details(result):
            console.say(f"  {line}")
    if evaluation.pairs:
        console.say("\nDifferences in points of accuracy; p exact (McNemar), and after Holm's correction for all of them:")
        console.print_table(report.PAIR_COLUMNS, report.pair_rows(evaluation.pairs), numbers=report.PAIR_NUMBERS)
    for file in evaluation.files:
        console.note(f"written: {file}")
