"""The entries of `medsft.toml`: where the base models are, and how many documents a data set has.

    [checkpoints.meditron]
    7 = "ckpt/llama2-7b-tp4-pp1"                    # size in 1e9 parameters = path, relative to this file
    8 = { path = "adapters/ward", base = "models/Llama-3.1-8B" }    # an adapter, from which training goes on
    "0.135" = { path = "smol.gguf", family = "llama", tokenizer = "tokenizer.json" }

    [datasets.pubmedqa]
    n_docs = 200000

Without an explicit file, the entries of the working folder's `medsft.toml` win over those of the user's own file.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsft.core.config.check import check, check_folder_name
from medsft.core.config.options import check_types, format_number
from medsft.core.config.run_config import RunConfig
from medsft.core.disk import writing
from medsft.core.files import alone_in, parents_of, write_atomically
from medsft.core.models.other_folders import how_to_fetch
from medsft.core.paths import is_there, read_text, read_toml, resolved
from medsft.errors import ConfigError, Problem

if TYPE_CHECKING:
    from tomlkit import TOMLDocument

FILE_NAME = "medsft.toml"
_NOT_GIVEN = RunConfig().checkpoint
"""The original's default of --checkpoint."""
_ADD = "Give a folder with a base model a name: medsft checkpoints add NAME SIZE PATH"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointEntry:
    """One base model under the name and size by which `--checkpoint` and `--size` ask for it."""

    name: str
    size: float
    """In 1e9 parameters."""
    path: Path
    """Absolute: a folder or a GGUF file. Need not exist until the entry is used."""
    family: str | None = None
    """Family in the names of run folders (`llama-2`); None: what the checkpoint says itself."""
    tokenizer: Path | None = None
    """Absolute; None: what lies beside the weights."""
    base: Path | None = None
    """Absolute: the base model of an adapter in `path`; None: the one that the adapter names."""
    source: Path | None = None
    """The file that has the entry."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` for values of wrong types, as code that makes an entry by hand may give."""
        if problems := check_types(self, place=lambda name: f"CheckpointEntry: {name}"):
            raise ConfigError(problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What one or two `medsft.toml` files say."""

    files: tuple[Path, ...] = ()
    """The files that were read, the one that wins first."""
    checkpoints: Mapping[tuple[str, float], CheckpointEntry] = field(default_factory=dict)
    datasets: Mapping[str, int] = field(default_factory=dict)
    """Number of documents of each data set, by run name."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` for entries of another kind, as code that makes settings by hand may give."""
        for key, entry in self.checkpoints.items():
            if not isinstance(entry, CheckpointEntry) or key != (entry.name, entry.size):
                wrong = f"{key!r} must be the (name, size) of a CheckpointEntry, not of {entry!r}"
                hint = 'Write {("base", 7): CheckpointEntry(name="base", size=7, path=Path("base"))}.'
                raise ConfigError([Problem("Settings: checkpoints", wrong, hint)])

    def find_checkpoint(self, name: str, size: float) -> CheckpointEntry:
        """Return the entry; its path exists. Raises `ConfigError` with the nearest entry, or the path that is not there."""
        entry = self.checkpoints.get((name, size))
        if entry is None and not math.isfinite(size):
            raise ConfigError([Problem("--size", f"{size} is not a finite number")])
        if entry is None:
            raise ConfigError([self._unknown(name, size)])
        if not entry.path.exists():
            where = f"{entry.source}: [checkpoints.{name}] {format_number(size)}"
            hint = how_to_fetch(f"{entry.path.parent.name}/{entry.path.name}") if _as_on_the_hub(entry) else ""
            hint = hint or "Correct the path, relative to that file."
            raise ConfigError([Problem(where, f"{entry.path} does not exist", hint)])
        return entry

    def expected_documents(self, run_name: str) -> int | None:
        """Return the `n_docs` of a data set, None when it is not listed."""
        return self.datasets.get(run_name)

    def _unknown(self, name: str, size: float) -> Problem:
        sizes = sorted(known_size for known_name, known_size in self.checkpoints if known_name == name)
        if sizes:
            text = f"`{name}` has no size {format_number(size)}"
            return Problem("--size", text, f"Sizes in {FILE_NAME}: {', '.join(map(format_number, sizes))}.")
        if "/" in name:
            text = f"`{name}` is not the name of an entry in {FILE_NAME}"
            there = f"medsft checkpoints add NAME {format_number(size)} {name}" if Path(name).expanduser().exists() else ""
            return Problem("--checkpoint", text, f"Give the folder a name: {there}" if there else how_to_fetch(name) or _ADD)
        text = f"unknown checkpoint `{name}`, size {format_number(size)}"
        names = sorted({known_name for known_name, _ in self.checkpoints})
        close = next((known for known in names if known.lower() == name.lower()), None) or next(
            iter(difflib.get_close_matches(name, names, n=1)), None
        )
        if close:
            return Problem("--checkpoint", f"{text}: did you mean `{close}`?", "`medsft checkpoints list` shows all entries.")
        hint = f"Add it: medsft checkpoints add {name} {format_number(size)} PATH"
        if names and name == _NOT_GIVEN:
            given = " or ".join(
                f"--checkpoint {known} --size {format_number(of)}" for known, of in sorted(self.checkpoints)[:3]
            )
            hint = f"Give {given}"
        elif names:
            hint += f". In {FILE_NAME}: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
        return Problem("--checkpoint", text, hint)


def project_file(cwd: Path | None = None) -> Path:
    """Return where the settings of the working folder are, whether or not the file exists."""
    return (cwd or Path.cwd()) / FILE_NAME


def user_file() -> Path:
    """Return where the user's own settings are: XDG_CONFIG_HOME, else ~/.config."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "medsft" / FILE_NAME


def load_settings(explicit: Path | None = None, *, cwd: Path | None = None) -> Settings:
    """Read the explicit file alone, or the project's file over the user's; none of the latter two need exist.

    Raises `ConfigError` with everything that is wrong, each under its file and entry.
    """
    if explicit is not None and not is_there(explicit):
        raise ConfigError([Problem("--settings", f"{explicit} does not exist")])
    candidates = [explicit] if explicit is not None else [project_file(cwd), user_file()]
    files = [resolved(path) for path in candidates if is_there(path)]
    problems: list[Problem] = []
    checkpoints: dict[tuple[str, float], CheckpointEntry] = {}
    datasets: dict[str, int] = {}
    for path in files:
        raw = _read(path, problems)
        for entry in _checkpoints(raw, path, problems):
            checkpoints.setdefault((entry.name, entry.size), entry)
        for name, count in _datasets(raw, path, problems):
            datasets.setdefault(name, count)
    if problems:
        raise ConfigError(problems)
    return Settings(files=tuple(files), checkpoints=checkpoints, datasets=datasets)


def check_with_settings(config: RunConfig, settings: Settings) -> list[Problem]:
    """Return what is wrong with the values of a config, and with the entry of its base model."""
    problems = [problem for problem in check(config) if problem.where != "--checkpoint" or "/" not in config.checkpoint]
    try:
        settings.find_checkpoint(config.checkpoint, config.size)
    except ConfigError as error:
        problems += [problem for problem in error.problems if problem not in problems]
    return problems


def _read(path: Path, problems: list[Problem]) -> dict[str, Any]:
    try:
        raw = read_toml(path, "")
    except ConfigError as error:
        problems.extend(error.problems)
        return {}
    known = ("checkpoints", "datasets")
    problems.extend(
        Problem(f"{path}: [{name}]", "there is no such section", "Sections: [checkpoints.NAME] and [datasets.NAME].")
        for name in raw
        if name not in known
    )
    return {name: raw[name] for name in known if name in raw}


def _sections(
    raw: Mapping[str, Any], kind: str, path: Path, problems: list[Problem]
) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Yield (NAME, table) of each `[kind.NAME]`."""
    sections = raw.get(kind, {})
    if not isinstance(sections, dict):
        problems.append(Problem(f"{path}: {kind}", "must be a section", f"Write [{kind}.NAME]."))
        return
    for name, table in sections.items():
        if isinstance(table, dict):
            yield name, table
        else:
            problems.append(Problem(f"{path}: {kind}.{name}", "must be a section", f"Write [{kind}.{name}]."))


def _checkpoints(raw: Mapping[str, Any], path: Path, problems: list[Problem]) -> Iterable[CheckpointEntry]:
    for name, table in _sections(raw, "checkpoints", path, problems):
        for key, value in _rejoin_sizes(table).items():
            where = f"{path}: [checkpoints.{name}] {key}"
            try:
                entry = _entry(name, parse_size(key), value, path)
            except ValueError as error:
                problems.append(Problem(where, str(error)))
                continue
            wrong = check_folder_name(f"{where}, family", entry.family) if entry.family is not None else []
            problems.extend(wrong)
            if not wrong:
                yield entry


def _rejoin_sizes(table: Mapping[str, Any]) -> dict[str, Any]:
    """Undo what TOML makes of an unquoted `0.135 = ...`: a table `0` with the key `135`."""
    result: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict) and value and all(re.fullmatch(r"\d+", inner) for inner in value):
            result.update({f"{key}.{inner}": deeper for inner, deeper in value.items()})
        else:
            result[key] = value
    return result


def parse_size(text: str) -> float:
    """Return a size in 1e9 parameters from `7`, `0.135` or `7b`. Raises `ValueError` for anything else."""
    try:
        size = float(text.lower().removesuffix("b"))
    except ValueError:
        size = 0.0
    if not 0 < size < 1e6:
        raise ValueError("the key must be a size in 1e9 parameters, such as 7 or 0.135")
    return size


def _entry(name: str, size: float, value: Any, source: Path) -> CheckpointEntry:
    fields = {"path": value} if isinstance(value, str) else value
    if not isinstance(fields, dict) or not all(isinstance(item, str) for item in fields.values()):
        raise ValueError('must be a path, or { path = "...", family = "...", tokenizer = "...", base = "..." }')
    unknown = sorted(fields.keys() - {"path", "family", "tokenizer", "base"})
    if unknown:
        raise ValueError(f"unknown key `{unknown[0]}`; the keys are path, family, tokenizer and base")
    if not fields.get("path"):
        raise ValueError("the path is missing")
    tokenizer, base = fields.get("tokenizer"), fields.get("base")
    return CheckpointEntry(
        name=name,
        size=size,
        path=_absolute(fields["path"], source),
        family=fields.get("family"),
        tokenizer=_absolute(tokenizer, source) if tokenizer else None,
        base=_absolute(base, source) if base else None,
        source=source,
    )


def _as_on_the_hub(entry: CheckpointEntry) -> bool:
    """Tell whether an entry's path was written as a model's name on Hugging Face's hub is: two words, one slash."""
    return entry.source is not None and entry.path.parent.parent == entry.source.parent and not entry.path.parent.exists()


def _absolute(text: str, source: Path) -> Path:
    return Path(os.path.normpath(source.parent / Path(text).expanduser()))


def _datasets(raw: Mapping[str, Any], path: Path, problems: list[Problem]) -> Iterable[tuple[str, int]]:
    for name, table in _sections(raw, "datasets", path, problems):
        count = table.get("n_docs")
        if table.keys() != {"n_docs"} or isinstance(count, bool) or not isinstance(count, int) or count < 1:
            problems.append(Problem(f"{path}: [datasets.{name}]", "needs one entry, n_docs, a whole number above 0"))
        else:
            yield name, count


def add_checkpoint(
    file: Path,
    name: str,
    size: float,
    path: Path,
    *,
    family: str | None = None,
    tokenizer: Path | None = None,
    base: Path | None = None,
) -> None:
    """Write or replace an entry. Comments and the order of the file stay. Paths below its folder become relative to it.

    Raises `ConfigError` for a name or family that cannot be part of a folder's name, and when the file is not valid TOML.
    """
    _check_names({"NAME": name, "--family": family})
    value: Any = _as_written(path, file)
    paths = {"tokenizer": tokenizer, "base": base}
    more = {"family": family} | {key: _as_written(other, file) for key, other in paths.items() if other is not None}
    given = {key: text for key, text in more.items() if text is not None}
    if given:
        import tomlkit

        table = tomlkit.inline_table()
        for key, text in {"path": value, **given}.items():
            table[key] = text
        value = table
    _edit(file, lambda document: _set(document, "checkpoints", name, format_number(size), value))


def remove_checkpoint(file: Path, name: str, size: float) -> None:
    """Take an entry out of the file; the checkpoint itself stays. Raises `ConfigError` when the file has no such entry."""

    def change(document: TOMLDocument) -> None:
        table = document.get("checkpoints", {}).get(name, {})
        for key in [key for key in table if _is_size(key, size)]:
            del table[key]
            break
        else:
            whole, _, decimals = format_number(size).partition(".")
            nested = table.get(whole, {})
            if isinstance(nested, str) or decimals not in nested:
                text = f"{file} has no [checkpoints.{name}] {format_number(size)}"
                raise ConfigError([Problem("", text, "`medsft checkpoints list` shows all entries.")])
            del nested[decimals]
            if not nested:
                del table[whole]
        if not table:
            del document["checkpoints"][name]

    _edit(file, change)


def add_dataset(file: Path, name: str, n_docs: int) -> None:
    """Write or replace the number of documents of a data set. Raises `ConfigError` as `add_checkpoint` does."""
    _check_names({"NAME": name})
    if n_docs < 1:
        raise ConfigError([Problem("N_DOCS", f"{n_docs} is too small", "Must be 1 or more.")])
    _edit(file, lambda document: _set(document, "datasets", name, "n_docs", n_docs))


def remove_dataset(file: Path, name: str) -> None:
    """Take a data set out of the file. Raises `ConfigError` when the file has no such entry."""

    def change(document: TOMLDocument) -> None:
        if name not in document.get("datasets", {}):
            text = f"{file} has no [datasets.{name}]"
            raise ConfigError([Problem("", text, "`medsft datasets list` shows all entries.")])
        del document["datasets"][name]

    _edit(file, change)


def _check_names(names: Mapping[str, str | None]) -> None:
    """Raise `ConfigError` for each that cannot be part of a folder's name, by what a person calls it."""
    problems = [p for where, text in names.items() if text is not None for p in check_folder_name(where, text)]
    if problems:
        raise ConfigError(problems)


def _is_size(key: str, size: float) -> bool:
    try:
        return parse_size(key) == size
    except ValueError:
        return False


def _as_written(path: Path, file: Path) -> str:
    """Return the path relative to the settings file when it lies below its folder, else absolute."""
    absolute = Path(os.path.normpath(Path.cwd() / path.expanduser()))
    folder = Path(os.path.normpath(Path.cwd() / file.expanduser())).parent
    return str(absolute.relative_to(folder)) if absolute.is_relative_to(folder) else str(absolute)


def _set(document: TOMLDocument, kind: str, name: str, key: str, value: Any) -> None:
    import tomlkit

    if kind not in document:
        document[kind] = tomlkit.table(is_super_table=True)
    if name not in document[kind]:
        document[kind][name] = tomlkit.table()
    table = document[kind][name]
    existing = next((old for old in table if kind == "checkpoints" and _is_size(old, float(key))), key)
    table[existing] = value


def _edit(file: Path, change: Callable[[TOMLDocument], None]) -> None:
    """Change a file. Two commands at once do so one after the other, so that neither loses what the other has written."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    with writing(file, ""), parents_of(file), alone_in(file.parent):
        try:
            document = tomlkit.parse(read_text(file, "")) if is_there(file) else tomlkit.document()
        except (TOMLKitError, RecursionError) as error:
            raise ConfigError([Problem(str(file), f"not valid TOML: {error}")]) from None
        change(document)
        write_atomically(file, tomlkit.dumps(document))
