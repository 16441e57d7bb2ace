"""`medsft demo`: the whole way on a real small model and questions that the package makes, in a few minutes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from medsft.cli import console
from medsft.cli.flags import Json, Plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medsft.core.config.run_config import RunConfig
    from medsft.core.demo.clinical import Row
    from medsft.core.demo.steps import DemoFolder, Score

_SAMPLES = 8


def demo(
    folder: Annotated[Path, typer.Option("--dir", metavar="DIR", help="Everything is written in here.")] = Path("demo"),
    adapter: Annotated[
        Literal["none", "lora"], typer.Option(help="Train all weights (none), or low-rank matrices beside them (lora).")
    ] = "none",
    base_precision: Annotated[
        Literal["bf16", "fp32", "nf4"] | None,
        typer.Option("--base_precision", help="With --adapter lora: nf4 keeps the base model in 4 bits (QLoRA)."),
    ] = None,
    plain: Plain = False,
    json: Json = False,
) -> None:
    """Fine-tune a real 135M model on simple clinical rules, and compare its answers before and after.

    The questions are made by a program and their answers checked by one. This demonstrates software; it is not medical advice.
    """
    from medsft.cli.models import busy
    from medsft.core.config.check import check
    from medsft.core.demo import steps
    from medsft.errors import ConfigError

    place = steps.DemoFolder(folder)
    config = place.config(adapter, base_precision)
    if problems := check(config):
        raise ConfigError(problems)
    console.note("A demonstration of software. The rules are simplified: this is not medical advice.")
    with busy("unpacking the base model", plain=plain):
        steps.write_base(place)
    train, held_out = steps.write_questions(place)
    console.note(f"{len(train)} questions to train on and {len(held_out)} others to test with, in {place.path}")
    with busy("asking the base model", plain=plain):
        before = steps.score(place, place.base, held_out, "before")
    model = _train(place, config, plain=plain)
    with busy("asking the fine-tuned model", plain=plain):
        after = steps.score(place, model, held_out, f"after-{model.name}")
    if json:
        scores = {"before": before, "after": after}
        record = {name: {"loss": score.loss, "accuracy": score.accuracy} for name, score in scores.items()}
        console.print_json(record | {"held_out": len(held_out), "model": model})
    else:
        _show(held_out, before, after, model)


def _train(place: DemoFolder, config: RunConfig, *, plain: bool) -> Path:
    """Run `medsft sft` on the questions and return the finished model; one that is there is used again."""

    from medsft.cli.progress import run_in_foreground
    from medsft.cli.stages import tokenizing
    from medsft.core.config.command import command_line
    from medsft.core.planning.planner import make_plan
    from medsft.core.run.launch import load_plan, read_launch
    from medsft.core.settings import load_settings
    from medsft.core.workflow import prepare_and_start
    from medsft.errors import AlreadyFinishedError

    settings = load_settings(place.settings)
    console.note(f"$ {command_line(config)} --settings {place.settings}")
    try:
        with tokenizing(plain=plain) as progress:
            run = prepare_and_start(config, settings, progress=progress)
    except AlreadyFinishedError:
        console.note(f"The model is trained already. Remove {place.path} to train it again.")
        return Path(make_plan(config, settings).export_dir)
    run_in_foreground(run, after=read_launch(run).after, plain=plain)
    model = Path(load_plan(run).export_dir)
    if not model.exists():
        raise typer.Exit(0)
    return model


def _show(rows: Sequence[Row], before: Score, after: Score, model: Path) -> None:
    console.print_table(
        ("held-out questions", "before", "after"),
        [
            ("loss of an answer token", f"{before.loss:.3f}", f"{after.loss:.3f}"),
            ("answers exactly right", f"{before.accuracy:.1%}", f"{after.accuracy:.1%}"),
        ],
        numbers=(1, 2),
    )
    console.say("")
    table = zip(rows[:_SAMPLES], before.answers, after.answers, strict=False)
    columns = ("question", "right answer", "before", "after")
    console.print_table(
        columns, [tuple(" ".join(text.split()) for text in (row["prompt"], row["gold"], old, new)) for row, old, new in table]
    )
    console.say(f"\nThe model: {model}")
