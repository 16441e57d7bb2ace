"""`medsft checkpoints` and `medsft datasets`: the entries of medsft.toml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medsft.cli import console
from medsft.cli.flags import Json, SettingsFile
from medsft.cli.guard import Group

checkpoints = typer.Typer(cls=Group, help="List, add, remove and find the base models of medsft.toml.", no_args_is_help=True)
datasets = typer.Typer(cls=Group, help="List, add and remove the data sets of medsft.toml.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="What --checkpoint asks for.")]
Size = Annotated[str, typer.Argument(metavar="SIZE", help="In 1e9 parameters: 7, 0.135.")]
DatasetName = Annotated[str, typer.Argument(metavar="NAME", help="The run name of the data set.")]
User = Annotated[bool, typer.Option("--user", help="In your config folder, for all projects, instead of here.")]


@checkpoints.command("list")
def list_checkpoints(settings: SettingsFile = None, json: Json = False) -> None:
    """List the base models."""
    from medsft.core.config.options import format_number
    from medsft.core.settings import load_settings

    entries = sorted(load_settings(settings).checkpoints.values(), key=lambda entry: (entry.name, entry.size))
    if json:
        names = ("name", "size", "path", "family", "tokenizer", "base", "source")
        console.print_json([{name: getattr(entry, name) for name in names} for entry in entries])
        return
    rows = [
        (entry.name, format_number(entry.size), str(entry.path) + ("" if entry.path.exists() else "  (does not exist)"))
        for entry in entries
    ]
    console.print_table(("name", "size", "path"), rows, numbers=[1])
    if not rows:
        console.note("No base models yet. Add one: medsft checkpoints add NAME SIZE PATH")


@checkpoints.command("add")
def add_checkpoint(
    name: Name,
    size: Size,
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A folder (Hugging Face, Megatron-LLM, a run, an adapter) or a GGUF file.")
    ],
    family: Annotated[str | None, typer.Option(help="Family in the names of run folders, such as llama-2.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="PATH", help="A tokenizer that is not beside the weights: folder or tokenizer.model.")
    ] = None,
    base: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The base model of an adapter that does not say where that is.")
    ] = None,
    settings: SettingsFile = None,
    user: User = False,
) -> None:
    """Add a base model, or an adapter to train on, or change its entry. Checkpoint and tokenizer are looked at first."""
    from medsft.core import settings as entries
    from medsft.core.data.tokenizers.open import no_tokenizer_beside, open_tokenizer
    from medsft.core.models.adapter_base import base_to_begin_with
    from medsft.core.models.inspect import inspect_ahead
    from medsft.core.models.other_folders import how_to_fetch
    from medsft.core.models.scanning import check_size
    from medsft.errors import ConfigError, MedsftError, Problem

    number, file = _size(size), _file(settings, user)
    path = path.expanduser()
    if not path.exists() and (fetch := how_to_fetch(str(path))):
        raise ConfigError([Problem("PATH", f"{path} does not exist here", fetch)])
    found = base_to_begin_with(path, base.expanduser() if base else None, inspect=inspect_ahead)
    check_size(found, number)
    if tokenizer is not None:
        open_tokenizer(tokenizer.expanduser())
    entries.add_checkpoint(file, name, number, path, family=family, tokenizer=tokenizer, base=base)
    kind = f"an adapter of {found.path}" if found.adapter else found.kind
    console.note(f"{file}: [checkpoints.{name}] {size} is now {path} ({kind}).")
    for warning in found.warnings:
        console.note(f"warning: {warning}")
    if tokenizer is None and found.tokenizer is None:
        console.note(f"warning: {no_tokenizer_beside(found.weights)}")
    elif tokenizer is None and found.tokenizer is not None and found.kind != "gguf":  # that of a GGUF file takes seconds
        try:
            open_tokenizer(found.tokenizer)
        except MedsftError as error:
            console.note(f"warning: {error}")


@checkpoints.command("remove")
def remove_checkpoint(name: Name, size: Size, settings: SettingsFile = None, user: User = False) -> None:
    """Take an entry out of medsft.toml. The checkpoint itself stays."""
    from medsft.core import settings as entries

    entries.remove_checkpoint(_file(settings, user), name, _size(size))


@checkpoints.command("scan")
def scan_checkpoints(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Searched with everything below it.")],
    add: Annotated[bool, typer.Option("--add", help="Write what is found into medsft.toml.")] = False,
    settings: SettingsFile = None,
    user: User = False,
    json: Json = False,
) -> None:
    """Find the checkpoints in a folder and below it."""
    from medsft.core import settings as entries
    from medsft.core.config.options import format_number
    from medsft.core.models.scanning import scan

    file = _file(settings, user)
    listed = entries.load_settings(file).checkpoints if add and file.is_file() else {}
    known = {entry.path.resolve() for entry in listed.values()}
    found = scan(folder.expanduser(), taken=listed.keys())
    if json:
        console.print_json(
            [
                {"name": f.name, "size": f.size, "path": f.base.path, "kind": f.base.kind, "tp": f.base.tp, "pp": f.base.pp}
                for f in found
            ]
        )
    else:
        rows = [(f.name, format_number(f.size), f.base.kind, str(f.base.path)) for f in found]
        console.print_table(("name", "size", "kind", "path"), rows, numbers=[1])
    if add:
        for one in found:
            if one.base.path.resolve() in known:
                console.note(f"{one.base.path} is in {file} already.")
            else:
                entries.add_checkpoint(file, one.name, one.size, one.base.path)
    elif found:
        console.note("`--add` writes these into medsft.toml.")
    if not found and not json:
        console.note(f"No base model that can be fine-tuned was found in {folder} or below it.")


@datasets.command("list")
def list_datasets(settings: SettingsFile = None, json: Json = False) -> None:
    """List the data sets with their number of documents."""
    from medsft.core.settings import load_settings

    entries = load_settings(settings).datasets
    if json:
        console.print_json({name: {"n_docs": count} for name, count in entries.items()})
    else:
        console.print_table(("name", "n_docs"), [(name, f"{count:,}") for name, count in sorted(entries.items())], numbers=[1])


@datasets.command("add")
def add_dataset(
    name: DatasetName,
    n_docs: Annotated[int, typer.Argument(metavar="N_DOCS", help="Number of documents.")],
    settings: SettingsFile = None,
    user: User = False,
) -> None:
    """Add a data set, or change its number of documents. A run warns when the tokenized set has another number."""
    from medsft.core import settings as entries

    entries.add_dataset(_file(settings, user), name, n_docs)


@datasets.command("remove")
def remove_dataset(name: DatasetName, settings: SettingsFile = None, user: User = False) -> None:
    """Take a data set out of medsft.toml. Its files stay."""
    from medsft.core import settings as entries

    entries.remove_dataset(_file(settings, user), name)


def _file(settings: Path | None, user: bool) -> Path:
    """Return the file to write: the explicit one, the user's, or the one of this folder."""
    from medsft.core import settings as entries

    return settings or (entries.user_file() if user else entries.project_file())


def _size(text: str) -> float:
    from medsft.core.settings import parse_size
    from medsft.errors import ConfigError, Problem

    try:
        return parse_size(text)
    except ValueError:
        raise ConfigError([Problem("SIZE", f"`{text}` is not a size in 1e9 parameters", "Such as 7, 70 or 0.135.")]) from None
