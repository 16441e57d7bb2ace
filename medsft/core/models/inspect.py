"""A look at a base checkpoint without torch: which kind, which model, which layout, how big. Plans are made from this."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medsft.core.models import gguf, megatron, run_folder
from medsft.core.models.adapter_folder import AdapterFolder, is_adapter
from medsft.core.models.checked_json import plain
from medsft.core.models.config import ModelConfig, read_hf_config
from medsft.core.models.other_folders import hub_snapshot, refuse_by_name, what_a_file_is
from medsft.core.models.weight_files import find_weight_files, look_at_weights, weights_instead
from medsft.errors import MismatchError

Kind = Literal["hf", "megatron", "gguf", "medsft-run", "dcp"]

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """What can be known of a checkpoint before any weight is read."""

    kind: Kind
    """`hf`: Hugging Face folder; `megatron`: Megatron-LLM folder; `gguf`: one file; `medsft-run`: folder of a run of ours;
    `dcp`: one torch.distributed.checkpoint folder, as a run's checkpoint or `convert --to dcp`."""
    path: Path
    """What was asked for."""
    weights: Path
    """Where the weights to read lie: the folder of the iteration that was asked for, or `path` itself."""
    config: ModelConfig | None
    """The model; None where only torch could tell."""
    tp: int | None = None
    pp: int | None = None
    """Layout from the ranks (Megatron-LLM), else from a name with `-tpT-ppP`, else None."""
    iteration: int | None = None
    """The iteration that will be read; None where there are none, and for `release`."""
    iterations: tuple[int, ...] = ()
    """Saved iterations to choose from, ascending."""
    tokenizer: Path | None = None
    """A folder with `tokenizer.json`, a `tokenizer.model`, or the GGUF file itself; None when there is none beside it."""
    size_bytes: int
    """Bytes of the files that will be read."""
    vocab_known: bool = True
    """False where `config.vocab_size` counts all rows of padded tables, because no file says how many belong to tokens."""
    saved_arguments: Mapping[str, Any] = field(default_factory=dict)
    """The trainer's arguments that a Megatron-LLM folder holds, plain values."""
    adapter: AdapterFolder | None = None
    """An adapter of this model, from which training goes on."""
    warnings: tuple[str, ...] = ()


def inspect_base(path: Path, iteration: int | None = None) -> BaseModel:
    """Say what lies at `path`, checked as far as that goes without torch and without reading weights.

    `iteration` picks `iter_N` or `checkpoint-N` inside; None takes the latest that is complete.
    Raises `MismatchError` for a path that is none of the known kinds, is incomplete or damaged, lacks that iteration, or is a
    model that cannot be fine-tuned here: of another family, quantized, or with weights that its description has no place for.
    """
    try:
        return _inspect(path, iteration)
    except OSError as error:
        raise MismatchError(f"{path}: cannot be read: {error.strerror or error}: {plain(str(error.filename))}.") from None


def _inspect(path: Path, iteration: int | None) -> BaseModel:
    if path.is_file():
        if path.suffix != ".gguf":
            raise MismatchError(f"{path}: a base model is a folder or a .gguf file.", hint=what_a_file_is(path))
        return _gguf(path)
    if not path.is_dir():
        raise MismatchError(f"{path}: no such file or folder.", hint="Check the path, or its entry in medsft.toml.")
    snapshot = hub_snapshot(path)
    if snapshot is not None:
        return _inspect(snapshot, iteration)
    kinds: tuple[tuple[bool, Callable[[Path, int | None], BaseModel]], ...] = (
        (run_folder.is_run(path), _run),
        (megatron.is_megatron(path), _megatron),
        ((path / ".metadata").is_file(), _dcp),
        ((path / "config.json").is_file() or bool(_numbered(path, _CHECKPOINT)), _hugging_face),
    )
    for found, inspect in kinds:
        if found:
            return inspect(path, iteration)
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return _gguf(ggufs[0])
    refuse_by_name(path)
    if is_adapter(inside := path / "adapter"):
        hint = f"Name that folder, or make a model of it and its base: medsft merge {inside} --to DIR"
        raise MismatchError(f"{path}: no model, only an adapter in {inside}.", hint=hint)
    hint = (
        f"It holds {len(ggufs)} GGUF files; name one of them: {ggufs[0]}"
        if ggufs
        else "Known: a Hugging Face folder (config.json), a Megatron-LLM folder (release/ or iter_NNNNNNN/ with mp_rank_*/), "
        f"a .gguf file, a run of medsft ({run_folder.PLAN_NAME})."
    )
    raise MismatchError(f"{path}: not a checkpoint of a known kind.", hint=hint)


def _lacks_weights(path: Path) -> bool:
    """Whether `path` is a Hugging Face folder that describes a model and has none of its weights."""
    weights = ("*.safetensors", "*.bin", "checkpoint-*", run_folder.PLAN_NAME, ".metadata")
    described = (path / "config.json").is_file() and not megatron.is_megatron(path)
    return described and not is_adapter(path) and not any(True for pattern in weights for _ in path.glob(pattern))


def inspect_ahead(path: Path, iteration: int | None = None) -> BaseModel:
    """Say what lies at `path` to somebody who only looks ahead: of a Hugging Face folder without weights what it describes.

    Its `size_bytes` is 0 then, and a warning says so. Raises as `inspect_base`; of weights in another format, too.
    """
    if not _lacks_weights(path) or any(path.glob("*.gguf")) or weights_instead(path):
        return inspect_base(path, iteration)
    tp, pp = megatron.layout_in_name(path) or (None, None)
    return BaseModel(
        kind="hf",
        path=path,
        weights=path,
        config=read_hf_config(path),
        tp=tp,
        pp=pp,
        tokenizer=_tokenizer_beside(path),
        size_bytes=0,
        warnings=(f"{path} has a config.json and no weights: a plan can be made, a run cannot start.",),
    )


def _hugging_face(path: Path, iteration: int | None) -> BaseModel:
    numbered = _numbered(path, _CHECKPOINT)
    if iteration is None and not (path / "config.json").is_file():
        iteration = max(numbered)
    folder = path if iteration is None else _pick(path, numbered, iteration, "checkpoint-{}")
    tp, pp = megatron.layout_in_name(path) or (None, None)
    ggufs = sorted(folder.glob("*.gguf"))
    if len(ggufs) == 1 and _lacks_weights(folder):
        return _gguf(ggufs[0])
    refuse_by_name(folder)
    config = read_hf_config(folder)
    files = find_weight_files(folder)
    return BaseModel(
        kind="hf",
        path=path,
        weights=folder,
        config=config,
        tp=tp,
        pp=pp,
        iteration=iteration,
        iterations=tuple(numbered),
        tokenizer=_tokenizer_beside(folder, path),
        size_bytes=_total(files),
        warnings=look_at_weights(files, config, where=str(folder)),
    )


def _megatron(path: Path, iteration: int | None) -> BaseModel:
    found = megatron.open_folder(path, iteration)
    tokenizer = _tokenizer_beside(found.folder, path) or _file_there(found.args.get("vocab_file"))
    return BaseModel(
        kind="megatron",
        path=path,
        weights=found.folder,
        config=found.config,
        tp=found.tp,
        pp=found.pp,
        iteration=found.iteration,
        iterations=megatron.iterations(path),
        tokenizer=tokenizer,
        size_bytes=_total(found.files.values()),
        vocab_known=found.vocab_known,
        saved_arguments=found.args,
        warnings=found.warnings,
    )


def _run(path: Path, iteration: int | None) -> BaseModel:
    numbered = {number: run_folder.checkpoint_path(path, number) for number in run_folder.iterations_in(path)}
    if not numbered:
        raise MismatchError(f"{path}: a run without a checkpoint; it cannot be a base model yet.")
    incomplete = {number: problem for number, folder in numbered.items() if (problem := run_folder.incomplete(folder))}
    number = max(numbered.keys() - incomplete.keys(), default=max(numbered)) if iteration is None else iteration
    folder = _pick(path, numbered, number, "iter_{:07d}")
    if number in incomplete:
        raise MismatchError(f"{folder} is damaged: {incomplete[number]}.", hint="Copy it again, or take another iteration.")
    tp, pp = megatron.layout_in_name(path) or (None, None)
    return BaseModel(
        kind="medsft-run",
        path=path,
        weights=folder,
        config=read_hf_config(folder) if (folder / "config.json").is_file() else None,
        tp=tp,
        pp=pp,
        iteration=number,
        iterations=tuple(sorted(numbered.keys() - incomplete.keys())),
        tokenizer=_tokenizer_beside(folder, path),
        size_bytes=_total(folder.glob("*.distcp")),
        warnings=tuple(
            f"{numbered[later].name} of {path.name} is damaged ({problem}): iteration {number} is taken instead."
            for later, problem in incomplete.items()
            if later > number
        ),
    )


def _dcp(path: Path, iteration: int | None) -> BaseModel:
    if iteration is not None:
        raise MismatchError(f"{path}: one checkpoint, without iterations to choose from.")
    return BaseModel(
        kind="dcp",
        path=path,
        weights=path,
        config=read_hf_config(path),
        tokenizer=_tokenizer_beside(path),
        size_bytes=_total(path.glob("*.distcp")),
    )


def _gguf(path: Path) -> BaseModel:
    config = gguf.config_of(path)
    return BaseModel(kind="gguf", path=path, weights=path, config=config, tokenizer=path, size_bytes=path.stat().st_size)


def _tokenizer_beside(*folders: Path) -> Path | None:
    for folder in folders:
        if (folder / "tokenizer.json").is_file():
            return folder
        if (folder / "tokenizer.model").is_file():
            return folder / "tokenizer.model"
    return None


def _file_there(name: Any) -> Path | None:
    """Return the path that saved arguments name, if there is anything: they may be of another machine, or odd."""
    try:
        return Path(name) if isinstance(name, str) and name and Path(name).exists() else None
    except (OSError, ValueError):
        return None


def _numbered(path: Path, pattern: re.Pattern[str]) -> dict[int, Path]:
    found = {int(match[1]): entry for entry in path.iterdir() if (match := pattern.fullmatch(entry.name)) and entry.is_dir()}
    return dict(sorted(found.items()))


def _pick(path: Path, numbered: dict[int, Path], iteration: int, form: str) -> Path:
    if iteration not in numbered:
        there = ", ".join(form.format(number) for number in numbered) or "no numbered checkpoint"
        raise MismatchError(f"{path}: there is no {form.format(iteration)} in it.", hint=f"It has: {there}.")
    return numbered[iteration]


def _total(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)
