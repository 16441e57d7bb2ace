"""Folders and files that people take for a base model: what each is, and what to do about it."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path

from medsft.core.models.adapter_folder import is_adapter
from medsft.core.models.checked_json import plain, read_object
from medsft.core.models.run_folder import PLAN_NAME
from medsft.errors import MismatchError

_CACHED = re.compile(r"models--(.+)--(.+)")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FOLDERS_OF_MODELS = {"models", "model", "checkpoints", "weights"}  # a folder here looks like an owner on the hub


def hub_snapshot(path: Path) -> Path | None:
    """Return the only snapshot in a folder of Hugging Face's cache (`models--x--y`, or its `snapshots`); None for any other.

    Raises `MismatchError` when there are several snapshots, or none.
    """
    folder = path / "snapshots" if (path / "snapshots").is_dir() else path
    if folder == path and not (path.name == "snapshots" and _CACHED.fullmatch(path.resolve().parent.name)):
        return None
    if any((path / name).exists() for name in ("config.json", PLAN_NAME)):
        return None  # a model that happens to have a folder of this name
    found = sorted(entry for entry in folder.iterdir() if entry.is_dir())
    if len(found) == 1:
        return found[0]
    if not found:
        raise MismatchError(f"{path}: a folder of Hugging Face's cache without a snapshot.", hint="Download the model again.")
    names = ", ".join(entry.name for entry in found[:4])
    raise MismatchError(
        f"{path}: a folder of Hugging Face's cache with {len(found)} snapshots: {names}.",
        hint=f"Name the one to use, such as {found[0]}",
    )


def name_in_cache(path: Path) -> str | None:
    """Return the model's name (`y`) for a snapshot in a `models--x--y`, or None."""
    name = hub_name(path)
    return name.rpartition("/")[2] if name else None


def hub_name(path: Path) -> str | None:
    """Return the name on Hugging Face's hub (`x/y`) of a snapshot in a `models--x--y`, or None for any other path."""
    match = _CACHED.fullmatch(path.parent.parent.name) if path.parent.name == "snapshots" else None
    return f"{match[1]}/{match[2]}" if match else None


def refuse_by_name(path: Path) -> None:
    """Raise `MismatchError` for a folder that is something else than a model in a format that is read, saying what it is."""
    has = {name for name in _TELLING if (path / name).exists()}
    weights = any(True for pattern in ("model*.safetensors", "pytorch_model*.bin") for _ in path.glob(pattern))
    if is_adapter(path):
        raise MismatchError(
            f"{path}: an adapter (PEFT), not a model{_of_base(path)}.",
            hint=f"Merge it into its base first: medsft merge {path} --base BASE --to DIR",
        )
    if "config.json" in has:
        return
    if weights:
        raise MismatchError(
            f"{path}: weights without a config.json.", hint="Copy the model's config.json and tokenizer beside them."
        )
    if "params.json" in has or "tekken.json" in has:
        whose = "Mistral's" if "tekken.json" in has else "Meta's or Mistral's"
        raise MismatchError(
            f"{path}: a model in {whose} own format (params.json, tekken.json, consolidated.*), which is not read.",
            hint="Take its files in Hugging Face's format: config.json, model*.safetensors and tokenizer.json.",
        )
    if "tokenizer.json" in has or "tokenizer.model" in has:
        raise MismatchError(
            f"{path}: a tokenizer without a model.", hint="The folder needs config.json and model*.safetensors."
        )
    cached = [entry.name for entry in islice(path.glob("models--*--*"), 4)]
    if cached:
        raise MismatchError(
            f"{path}: Hugging Face's cache of several models.",
            hint=f"Name one: {', '.join(str(path / name) for name in cached)}",
        )


_TELLING = ("config.json", "params.json", "tekken.json", "tokenizer.json", "tokenizer.model")


def _of_base(path: Path) -> str:
    try:
        base = read_object(path / "adapter_config.json").get("base_model_name_or_path")
    except (MismatchError, FileNotFoundError):
        return ""
    return f" of its own; it belongs to {plain(base)}" if isinstance(base, str) and base else ""


def what_a_file_is(path: Path) -> str:
    """Return what to do with a file that was given for a base model."""
    if path.suffix in (".safetensors", ".bin", ".pt", ".pth") or path.name == "config.json":
        return f"Give the folder that it lies in, with config.json and tokenizer beside it: {path.parent}"
    if path.suffix in (".zip", ".tar", ".gz", ".tgz"):
        return "Unpack it, and give the folder."
    return ""


def how_to_fetch(name: str) -> str:
    """Return what to do for a name as on Hugging Face's hub (`meta-llama/Llama-3.1-8B`), or nothing where it is none."""
    if not _HUB_NAME.fullmatch(name):
        return ""
    owner, _, short = name.partition("/")
    folder = f"models/{short}"
    if owner.lower() in _FOLDERS_OF_MODELS:
        name, folder = f"OWNER/{short}", name
    return (
        f"medsft downloads nothing. Fetch the model yourself, as with `hf download {name} --local-dir {folder}`, then "
        f"give it a name and its size in 1e9 parameters: medsft checkpoints add NAME SIZE {folder}"
    )
