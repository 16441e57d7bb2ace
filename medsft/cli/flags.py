"""The flags of a run, made from the fields of `RunConfig`: names, help, units, choices and defaults are written only there."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from medsft.core.config.file import hint_of_paths, load_toml
from medsft.core.config.options import field_types, flag, format_number
from medsft.core.config.run_config import GROUPS, RunConfig, from_mapping
from medsft.errors import ConfigError, DataError, Problem

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from medsft.core.run.rundir import RunDir

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE.toml",
        help="Options of the run from a file; flags win over it. Its paths are relative to the working folder, not to it.",
    ),
]
SettingsFile = Annotated[
    Path | None,
    typer.Option(
        "--settings", metavar="FILE", help="This medsft.toml, instead of the one here and the one in your config folder."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, for programs.")]
JsonLines = Annotated[bool, typer.Option("--json", help="Each event as one line of JSON on standard output, for programs.")]
Plain = Annotated[bool, typer.Option("--plain", help="Lines of text instead of a live display.")]
ModelPrecision = Annotated[
    Literal["auto", "bf16", "fp32"], typer.Option("--precision", help="Number format; auto: bf16 where that is faster.")
]
QuestionKey = Annotated[
    str | None, typer.Option("--question_key", metavar="KEY", help="Key of the question in rows of your own.")
]
Iteration = Annotated[
    int | None, typer.Option("--iteration", metavar="N", min=1, help="Saved iteration of a run; its model when not given.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="Folder of the run, or its name below --save_checkpoint_dir.")]
RunsFolder = Annotated[Path, typer.Option("--save_checkpoint_dir", metavar="PATH", help="Folder of the run folders.")]
DEFAULT_RUNS_FOLDER: Path = RunConfig().save_checkpoint_dir


def takes_config(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one flag for each field of `RunConfig`, and `--config`.

    Its first parameter, `config`, gets the result: the defaults, then the file, then the flags that were given.
    """

    return _with_config(command, fields(RunConfig))


def takes_row_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command `--config` and the flags of a run that say which rows there are and how they are read.

    Its first parameter, `config`, gets the result as in `takes_config`.
    """

    of_rows = [f for f in fields(RunConfig) if f.name in _ROW_OPTIONS or (f.name.endswith("_key") and f.name != "group_key")]
    return _with_config(command, of_rows)


def _with_config(command: Callable[..., None], chosen: Sequence[Field[Any]]) -> Callable[..., None]:
    def with_config(given: Mapping[str, Any], *, config: ConfigFile = None, **values: Any) -> None:
        read = read_config(config, given)
        try:
            command(read, **values)
        except DataError as error:
            if config is None or not (hint := hint_of_paths(config, read, error.message)):
                raise
            raise DataError(error.message, hint=hint) from error

    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    file = inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=ConfigFile)
    return _with_flags(RunConfig, wraps(command)(with_config), [file, *own], chosen)


_ROW_OPTIONS = frozenset({"data", "val", "format", "role_map", "first_option"})
"""Beside the keys, of which `--group_key` is for the drawing of a share."""


def takes_options(kind: type[DataclassInstance]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one argument or flag for each field of `kind`. Its first parameter gets the values that were typed."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        return _with_flags(kind, command, list(inspect.signature(command, eval_str=True).parameters.values())[1:], fields(kind))

    return decorate


def _with_flags(
    kind: type[DataclassInstance],
    command: Callable[..., None],
    own: Sequence[inspect.Parameter],
    chosen: Sequence[Field[Any]],
) -> Callable[..., None]:
    names = [f.name for f in chosen]

    @wraps(command)
    def with_flags(**values: Any) -> None:
        typed = {name: values.pop(name) for name in names}
        command({name: value for name, value in typed.items() if value not in (None, [])}, **values)

    own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    with_flags.__signature__ = inspect.Signature([*(_parameter(f, kind) for f in chosen), *own])  # type: ignore[attr-defined]
    with_flags.__annotations__ = {}
    return with_flags


def read_config(file: Path | None, given: Mapping[str, Any]) -> RunConfig:
    """Return the defaults, changed by the file, changed by the flags that were given."""
    return from_mapping(given, base=load_toml(file) if file is not None else RunConfig())


def _parameter(f: Field[Any], of: type[DataclassInstance]) -> inspect.Parameter:
    """Return the option of one field. Values stay text: `converted` reads them, and reports all that are wrong at once."""
    kind, _, is_list = field_types(of)[f.name]
    required = f.default is MISSING
    annotation: Any = list[str] if is_list else bool if kind is bool else str
    if f.metadata["argument"]:
        place: Any = typer.Argument(metavar=f.metadata["argument"], help=_help(f))
    else:
        name = f"--{f.name}/--no_{f.name}" if kind is bool and not f.metadata["only_on"] else flag(f.name)
        metavar = f"{_METAVARS[kind]}..." if is_list else "CHOICE" if f.metadata["choices"] else _METAVARS.get(kind)
        panel = GROUPS.get(f.metadata["group"], f.metadata["group"]) or None
        place = typer.Option(name, help=_help(f), metavar=metavar, rich_help_panel=panel, show_default=False)
    return inspect.Parameter(
        f.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if required else None,
        annotation=Annotated[annotation if required else annotation | None, place],
    )


_METAVARS = {int: "N", float: "NUMBER", str: "TEXT", Path: "PATH"}


def _help(f: Field[Any]) -> str:
    default = f.default
    shown = [" | ".join(f.metadata["choices"]) or f.metadata["unit"]]
    if default not in (MISSING, None, "", (), False):
        shown.append(f"default {format_number(default) if isinstance(default, float) else default}")
    if f.metadata["with_adapter"] is not None:
        shown.append(f"with an adapter {format_number(f.metadata['with_adapter'])}")
    text = f.metadata["help"].replace("[", r"\[")
    return f"{text} [dim]({'; '.join(filter(None, shown))})[/dim]" if any(shown) else text


def find_run(text: str, folder: Path) -> RunDir:
    """Return the run that a person means: a path, the name of a run in `folder`, or a part that only one name has.

    Its path is absolute. Raises `ConfigError` when there is none or more than one.
    """
    from medsft.core.paths import resolved
    from medsft.core.run.listing import list_runs, why_no_folder
    from medsft.core.run.rundir import RunDir

    given = RunDir(Path(text))
    if os.path.lexists(given.plan_path):
        return RunDir(Path(text).resolve())
    runs = list_runs(resolved(folder))
    matching = [run for run in runs if run.path.name == text] or [run for run in runs if text in run.path.name]
    if len(matching) == 1:
        if reason := why_no_folder(matching[0]):
            raise ConfigError([Problem("RUN", f"{matching[0].path} is broken: {reason}")])
        return matching[0]
    if matching:
        names = ", ".join(run.path.name for run in matching)
        raise ConfigError([Problem("RUN", f"`{text}` is a part of several names", f"One of: {names}.")])
    hint = f"Runs in {folder}: {', '.join(run.path.name for run in runs)}." if runs else f"There are no runs in {folder}."
    raise ConfigError([Problem("RUN", f"there is no run `{text}`", hint)])
