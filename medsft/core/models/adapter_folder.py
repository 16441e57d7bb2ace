"""A folder with a low-rank adapter in PEFT's format, ours or another program's: what it holds, without torch.

FOLDER/adapter_config.json         PEFT's `LoraConfig`: rank, alpha, of which base
FOLDER/adapter_model.safetensors   its tensors (or adapter_model.bin), by PEFT's names
FOLDER/tokenizer.json ...          the tokenizer with the tokens that were added, often

The tensors that are there say which matrices have an adapter, however `target_modules` spells it: a list, a regular expression,
or `all-linear`. PEFT's names, as it saves them (peft/utils/save_and_load.py, peft/utils/other.py):

    base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight             A, and `lora_B` for B
    base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta   new values of the `trainable_token_indices`
    base_model.model.lm_head.weight                                            a whole table (`modules_to_save`, or grown)

What changes the result and is not implemented is refused by its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsft.core.config.lora import A_SUFFIX, ATTENTION, B_SUFFIX, MLP, TARGETS, TRAINED_ROWS, LoraSpec
from medsft.core.models import run_folder
from medsft.core.models.checked_json import Values, plain, read_object, shown
from medsft.core.models.config import ModelConfig
from medsft.core.models.safetensors import StoredTensor, read_metadata
from medsft.core.models.tensors import EMBEDDING, OUTPUT, listed
from medsft.core.models.weight_files import PLAIN, describe_file
from medsft.errors import MismatchError

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""In front of every name in PEFT's files."""
ROWS_SUFFIX = ".token_adapter.trainable_tokens_delta"
"""Behind the name of a table's module: the rows of it that were trained."""
BASE_KEY, BASE_PRECISION_KEY = "medsft.base", "medsft.base_precision"
"""In the metadata of our adapter_model.safetensors: the fingerprint of the base model's files, and the format in which the base
was kept while the adapter was trained."""
_OLD_WEIGHTS_NAME = "adapter_model.bin"
_TABLES = {"embed_tokens": EMBEDDING, "lm_head": OUTPUT}
_PAIR = re.compile(
    rf"model\.layers\.(\d+)\.(?:self_attn\.(?:{'|'.join(ATTENTION)})|mlp\.(?:{'|'.join(MLP)}))\.lora_[AB]\.weight"
)
_LARGEST_RANK = 65_536
_MOST_ROWS = 4_000_000
_KEEP_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the base's weights as they are; PiSSA, OLoRA, LoftQ and their like change them."""
_WITHOUT = "Only plain LoRA is read; merge it with the program that wrote it (PEFT: merge_and_unload, then save_pretrained)."
_FEATURES = {
    "layers_to_transform": "an adapter of some layers only",
    "layer_replication": "an adapter that repeats layers",
    "target_parameters": "an adapter of parameters that are no linear layers",
    "alora_invocation_tokens": "an activated LoRA (aLoRA), which begins at a token",
    "lora_bias": "a LoRA with biases",
}
"""Fields of a LoraConfig that make another adapter of it when they are set, with what it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFolder:
    """A low-rank adapter on disk, of which no tensor was read."""

    path: Path
    lora: LoraSpec
    base: str
    """The base model's path or name on a hub as the adapter says it; empty where it says none."""
    tensors: Mapping[str, StoredTensor]
    """By our names: `...lora_A.weight` and `...lora_B.weight`, `TRAINED_ROWS` of a table, a table itself where it is saved
    whole."""
    keys: Mapping[str, str]
    """The names that the same tensors have in the file."""
    rows: Mapping[str, tuple[int, ...]]
    """By the name of a table, the ids of its rows that `TRAINED_ROWS` of it replaces."""
    tokenizer: Path | None
    """The folder itself or its `tokenizer.model`, where it has a tokenizer."""
    base_fingerprint: str
    """`planning.base.sampled_fingerprint` of the base that it was trained on; empty where another program trained it."""
    base_precision: str
    """bf16, fp32 or nf4: what the base was rounded to while the adapter was trained; empty where that is not known."""
    dropout: float = 0.0
    """Share of the inputs of A that the training of another program left out, as its configuration says."""

    @property
    def weights(self) -> Path:
        """Return the file that holds the tensors."""
        return next(iter(self.tensors.values())).file

    @property
    def tables(self) -> tuple[str, ...]:
        """Return the names of the tables that are saved whole."""
        return tuple(name for name in (EMBEDDING, OUTPUT) if name in self.tensors)

    def vocab_size(self, model: ModelConfig) -> int:
        """Return the rows of the tables of a base `model` with this adapter: what the adapter has beyond them is added."""
        if self.tables:
            return self.tensors[self.tables[0]].shape[0]
        return max(model.vocab_size, *(max(ids) + 1 for ids in self.rows.values()), 0)


def is_adapter(path: Path) -> bool:
    """Tell whether a folder is an adapter; a whole model with an adapter in its folder is that model."""
    weights = ("model*.safetensors", "pytorch_model*.bin")
    return (path / CONFIG_NAME).is_file() and not any(True for pattern in weights for _ in path.glob(pattern))


def read_adapter(path: Path) -> AdapterFolder:
    """Say what the adapter in a folder is.

    Raises `MismatchError` for a folder without one, for files that are missing, damaged or not fitting one another, and, by its
    name, for an adapter of another kind than plain LoRA on the linear layers of a Llama-like decoder.
    """
    if path.is_file():
        raise MismatchError(f"{path}: a file; an adapter is a folder.", hint=f"Give the folder that it lies in: {path.parent}")
    if not path.is_dir():
        raise MismatchError(f"{path}: no such file or folder.")
    try:
        raw = read_object(path / CONFIG_NAME)
    except FileNotFoundError:
        raise MismatchError(f"{path}: no {CONFIG_NAME} there, so no adapter.", hint=_meant(path)) from None
    values = Values(raw, str(path / CONFIG_NAME))
    _check_kind(values)
    file = next((path / name for name in (WEIGHTS_NAME, _OLD_WEIGHTS_NAME) if (path / name).is_file()), None)
    if file is None:
        raise MismatchError(f"{path}: no {WEIGHTS_NAME} beside {CONFIG_NAME}.", hint="Copy the whole folder again.")
    described = describe_file(file)
    keys = {_our_name(key, where=str(file)): key for key in described}
    tensors = {name: described[key] for name, key in keys.items()}
    if odd := next((tensor for tensor in tensors.values() if tensor.dtype not in PLAIN), None):
        raise MismatchError(f"{file}: holds tensors as {plain(odd.dtype)}; an adapter is read in fp32, fp16 or bf16.")
    metadata = read_metadata(file) if file.suffix == ".safetensors" else {}
    return AdapterFolder(
        path=path,
        lora=_lora(values, tensors, where=str(file)),
        base=values.text("base_model_name_or_path", default=""),
        tensors=tensors,
        keys=keys,
        rows=_rows(values, tensors),
        tokenizer=_tokenizer(path),
        base_fingerprint=metadata.get(BASE_KEY, ""),
        base_precision=metadata.get(BASE_PRECISION_KEY, ""),
        dropout=dropout if isinstance(dropout := raw.get("lora_dropout"), float) else 0.0,
    )


def _meant(path: Path) -> str:
    """Return what a person most likely wanted who names a folder that is no adapter."""
    if (path / "adapter" / CONFIG_NAME).is_file():
        return f"Did you mean {path / 'adapter'}?"
    run = next((folder for folder in (path, path.parent) if run_folder.is_run(folder)), None)
    return f"Of a run, write its adapter or its whole model: medsft export {run} --to DIR" if run else ""


def check_fits(adapter: AdapterFolder, model: ModelConfig, *, where: str) -> None:
    """Raise `MismatchError` unless an adapter belongs to a base of these sizes; `where` names the base."""
    hidden = model.hidden_size
    expected = dict(adapter.lora.shapes(model))
    expected |= {TRAINED_ROWS[table]: (len(ids), hidden) for table, ids in adapter.rows.items()}
    expected |= {table: (adapter.tensors[table].shape[0], hidden) for table in adapter.tables}
    problems = [
        f"{name} is {_shape(adapter, name)}, for the base it would be {list(shape)}"
        for name, shape in expected.items()
        if name not in adapter.tensors or adapter.tensors[name].shape != shape
    ]
    if more := [name for name in adapter.tensors if name not in expected]:
        problems.append(f"the base has no place for {listed(more)}")
    if problems:
        raise MismatchError(
            f"{adapter.path}: an adapter of another base than {where}: {'; '.join(problems[:3])}.",
            hint=f"It names {plain(adapter.base)} as its base." if adapter.base else "Name the base that it was trained on.",
        )
    _check_tables(adapter, model, where=where)


def _shape(adapter: AdapterFolder, name: str) -> str:
    return str(list(adapter.tensors[name].shape)) if name in adapter.tensors else "missing"


def _check_tables(adapter: AdapterFolder, model: ModelConfig, *, where: str) -> None:
    """Refuse tables and rows of which it is not certain what the adapter's program would make of them on this base."""
    both = set(adapter.tables) == {EMBEDDING, OUTPUT}
    sizes = {adapter.tensors[name].shape[0] for name in adapter.tables}
    if not both:
        sizes |= {model.vocab_size} if adapter.tables else set()
    if len(sizes) > 1:
        raise MismatchError(f"{adapter.path}: its tables have {' and '.join(f'{size:,}' for size in sorted(sizes))} rows.")
    if adapter.tables and adapter.rows:
        raise MismatchError(f"{adapter.path}: it has whole tables and single rows of them.", hint=_WITHOUT)
    if model.tie_embeddings and (OUTPUT in adapter.rows or len(adapter.tables) == 1):
        raise MismatchError(
            f"{adapter.path}: it changes one of two tables, but in {where} the embedding is the output table, too.",
            hint=_WITHOUT,
        )
    beyond = adapter.vocab_size(model)
    if any(id_ < 0 for ids in adapter.rows.values() for id_ in ids) or beyond > model.vocab_size + _MOST_ROWS:
        raise MismatchError(f"{adapter.path}: `trainable_token_indices` has numbers that are no tokens.")


def _check_kind(values: Values) -> None:
    kind = values.text("peft_type")
    if kind.upper() != "LORA":
        raise MismatchError(f"{values.where}: an adapter of the kind {plain(kind)}.", hint=_WITHOUT)
    task = values.text("task_type", default="CAUSAL_LM")
    if task != "CAUSAL_LM":
        raise MismatchError(f"{values.where}: an adapter for {plain(task)}, not of a model that writes text (CAUSAL_LM).")
    if values.text("bias", default="none") != "none":
        raise MismatchError(f"{values.where}: it trained biases (`bias` is {shown(values.raw['bias'])}).", hint=_WITHOUT)
    # Variants of LoRA that come later will be switched on as DoRA is, by a field of their own.
    for name in values.raw:
        if name.startswith("use_") and name != "use_rslora" and values.raw[name]:
            what = "a DoRA adapter" if name == "use_dora" else "a variant of LoRA"
            raise MismatchError(f"{values.where}: {what} (`{plain(name)}`).", hint=_WITHOUT)
    for name, what in _FEATURES.items():
        if values.raw.get(name):
            raise MismatchError(f"{values.where}: {what} (`{name}`).", hint=_WITHOUT)
    start = values.raw.get("init_lora_weights")
    if not any(start is known or start == known for known in _KEEP_THE_BASE):
        raise MismatchError(
            f"{values.where}: trained from {shown(start)} (`init_lora_weights`), which changes the base's weights, too.",
            hint="Convert it to plain LoRA with PEFT (save_pretrained, path_initial_model_for_weight_conversion), or merge it.",
        )
    others = [name for name in values.items("modules_to_save") if _last(name) not in _TABLES]
    if others:
        raise MismatchError(f"{values.where}: it holds whole modules (`modules_to_save`): {shown(others[0])}.", hint=_WITHOUT)


def _last(name: Any) -> str:
    return name.rpartition(".")[2] if isinstance(name, str) else ""


def _our_name(key: str, *, where: str) -> str:
    """Return our name of a tensor in PEFT's file. Raises `MismatchError` for one that plain LoRA does not have."""
    name = key.removeprefix(PREFIX)
    if _PAIR.fullmatch(name):
        return name
    for table in TRAINED_ROWS:
        module = table.removesuffix(".weight")
        if name == module + ROWS_SUFFIX:
            return TRAINED_ROWS[table]
        if name in (table, f"{module}.modules_to_save.weight"):
            return table
    raise MismatchError(f"{where}: holds {plain(name)}, which is {_what(name)}.", hint=_WITHOUT)


def _what(name: str) -> str:
    if "lora_magnitude" in name:
        return "a DoRA adapter's"
    if "lora_embedding" in name or name.startswith(("lm_head.lora", "model.embed_tokens.lora")):
        return "an adapter of a table of the vocabulary"
    if ".bias" in name:
        return "a bias"
    return "not a matrix of LoRA on a linear layer of a Llama-like decoder"


def _lora(values: Values, tensors: Mapping[str, StoredTensor], *, where: str) -> LoraSpec:
    rank = values.whole("r", high=_LARGEST_RANK)
    alpha = values.number("lora_alpha", high=1e9)
    for pattern, whole in (("rank_pattern", rank), ("alpha_pattern", alpha)):
        if any(value != whole for value in values.inner(pattern).raw.values()):
            raise MismatchError(f"{values.where}: `{pattern}` gives layers numbers of their own.", hint=_WITHOUT)
    modules = {name.rpartition(".lora_")[0] for name in tensors if _PAIR.fullmatch(name)}
    if not modules:
        raise MismatchError(f"{where}: no lora_A and lora_B of a linear layer in it.")
    targets = {module.rpartition(".")[2] for module in modules}
    layers = {module.rpartition(".")[0].rpartition(".")[0] for module in modules}
    missing = sorted(
        module + suffix
        for module in _whole(targets, layers)
        for suffix in (A_SUFFIX, B_SUFFIX)
        if module + suffix not in tensors
    )
    if missing:
        raise MismatchError(
            f"{where}: {listed(missing)} {'are' if len(missing) > 1 else 'is'} not there: an adapter of some layers only.",
            hint=_WITHOUT,
        )
    return LoraSpec(
        rank=rank,
        alpha=alpha,
        targets=tuple(name for name in TARGETS if name in targets),
        rslora=values.flag("use_rslora"),
    )


def _whole(targets: Iterable[str], layers: Iterable[str]) -> set[str]:
    """Return the modules that an adapter of these targets has in these layers."""
    return {f"{layer}.{'self_attn' if name in ATTENTION else 'mlp'}.{name}" for name in targets for layer in layers}


def _rows(values: Values, tensors: Mapping[str, StoredTensor]) -> dict[str, tuple[int, ...]]:
    """Return the ids in `trainable_token_indices`: a list is of the embedding, an object has them by the end of a module's
    name."""
    given = values.raw.get("trainable_token_indices") or {}
    by_table = given if isinstance(given, Mapping) else {"embed_tokens": given}
    rows: dict[str, tuple[int, ...]] = {}
    for module, ids in by_table.items():
        table = _TABLES.get(_last(module))
        if table is None or not isinstance(ids, list) or not all(isinstance(id_, int) and id_ is not True for id_ in ids):
            raise MismatchError(
                f"{values.where}: `trainable_token_indices` must hold ids of tokens by embed_tokens and lm_head."
            )
        if ids and (table == EMBEDDING or TRAINED_ROWS[table] in tensors):  # a tied output table has none of its own
            rows[table] = tuple(ids)
    stored = {table for table, name in TRAINED_ROWS.items() if name in tensors}
    if stored != rows.keys() or any(tensors[TRAINED_ROWS[table]].shape[:1] != (len(ids),) for table, ids in rows.items()):
        raise MismatchError(
            f"{values.where}: `trainable_token_indices` does not fit the rows in {WEIGHTS_NAME}.",
            hint="The two files are of different adapters; copy the folder again.",
        )
    return rows


def _tokenizer(path: Path) -> Path | None:
    if (path / "tokenizer.json").is_file():
        return path
    return path / "tokenizer.model" if (path / "tokenizer.model").is_file() else None
