"""What a Megatron-LLM checkpoint folder says about itself, read without torch: its files, layout and model.

ROOT/latest_checkpointed_iteration.txt      a number > 0 or `release`
ROOT/release/ or ROOT/iter_0000800/         one folder per rank inside:
    mp_rank_TT/model_optim_rng.pt           tensor rank TT, when there is one pipeline stage
    mp_rank_TT_PPP/model_optim_rng.pt       tensor rank TT, pipeline stage PPP
    mp_rank_TT[_PPP]/model_rng.pt           weights of a run with the distributed optimizer
    mp_rank_TT[_PPP]_DDD/optim.pt           its optimizer shards, which are not read
    medsft.json                             ours: what the original's arguments cannot say
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Any

from medsft.core.models import pickles
from medsft.core.models.checked_json import Values, read_object, shown
from medsft.core.models.config import ModelConfig, check_sizes, from_hf_config
from medsft.errors import MismatchError

TRACKER = "latest_checkpointed_iteration.txt"
SIDECAR = "medsft.json"
WEIGHT_FILES = ("model_optim_rng.pt", "model_rng.pt")
_RANK = re.compile(r"mp_rank_(\d{2,})(?:_(\d{3}))?")
_ITERATION = re.compile(r"iter_(\d+)")
_LAYOUT_IN_NAME = re.compile(r"(?:^|-)tp(\d+)-pp(\d+)(?=-|$)")

FAMILY_CONSTANTS = {"llama": (1e-6, 1e4), "llama2": (1e-5, 1e4), "codellama": (1e-5, 1e6), "mistral": (1e-5, 1e4)}
"""(norm epsilon, rope theta) of the models that the original knows by `model_name`."""
_CONSTANTS = ("norm_eps", "rope_theta", "rope_scaling_factor")
_MOST_RANKS = 1024
"""Of one kind; far more than anybody has had."""
_ANY_SIZE = 1 << 40
"""Sizes are held against what models have when all are read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MegatronFolder:
    """One saved iteration of a Megatron-LLM checkpoint: every rank is there, and the ranks agree with the arguments."""

    root: Path
    folder: Path
    """`root/release` or `root/iter_NNNNNNN`."""
    iteration: int | None
    """None for `release`."""
    tp: int
    pp: int
    files: Mapping[tuple[int, int], Path]
    """(tensor rank, pipeline stage) -> file with the weights."""
    args: Mapping[str, Any]
    """The trainer's arguments: plain values only, enum members and dtypes by name."""
    padded_vocab_size: int
    """Rows of the embedding in the files."""
    vocab_known: bool
    """Whether a file of ours says how many of them belong to tokens."""
    config: ModelConfig
    """Its `vocab_size` is the tokenizer's where a file of ours says it, else the rows in the files, padding included."""
    warnings: tuple[str, ...]


def layout_in_name(path: Path) -> tuple[int, int] | None:
    """Return (tp, pp) when the folder's name has `-tpT-ppP` in it, as `llama2-7b-tp4-pp1`."""
    match = _LAYOUT_IN_NAME.search(path.name)
    return (int(match[1]), int(match[2])) if match else None


def is_megatron(root: Path) -> bool:
    """Say whether a folder holds a Megatron-LLM checkpoint, complete or not."""
    return any(any(folder.glob("mp_rank_*")) for folder in (root / "release", *_iteration_folders(root).values()))


def saved_folder(root: Path, iteration: int | None) -> Path:
    """Return where an iteration is written below `root`; `release` without one."""
    return root / ("release" if iteration is None else f"iter_{iteration:07d}")


def iterations(root: Path) -> tuple[int, ...]:
    """Return the numbers of the saved iterations, ascending; `release` has none."""
    return tuple(_iteration_folders(root))


def open_folder(
    root: Path,
    iteration: int | None = None,
    *,
    norm_eps: float | None = None,
    rope_theta: float | None = None,
    rope_scaling_factor: float | None = None,
) -> MegatronFolder:
    """Check one iteration of a checkpoint and read its arguments; without `iteration`, the one that the tracker names.

    `iteration` 0 means `release`. The three constants win over what the files say.
    Raises `MismatchError`, each with its own message, for: no or a wrong tracker, an iteration that is not there, a missing
    rank, a damaged or refused file, checkpoint_version below 3, a layout that contradicts the folder's name, an
    architecture that medsft does not implement.
    """
    folder, number = _choose(root, iteration)
    files = _rank_files(folder)
    first = files.get((0, 0))
    if first is None:
        raise MismatchError(f"{folder}: the file of rank 0 (mp_rank_00 or mp_rank_00_000) is missing.")
    content = pickles.look(first)
    version = content.get("checkpoint_version", 0) if isinstance(content, dict) else 0
    if isinstance(version, bool) or not isinstance(version, (int, float)) or not version >= 3:
        raise MismatchError(
            f"{first}: checkpoint_version is {shown(version)}; below 3.0 the query, key and value rows lie in another order.",
            hint="Load and save it once with a current Megatron-LLM.",
        )
    args = plain_args(content.get("args"))
    tp, pp = _checked_layout(root, folder, files, Values(args, str(first)))
    for path in files.values():
        pickles.check_whole(path)
    rows = _embedding_rows(content, first) * tp
    sidecar = _read_sidecar(folder)
    constants = {"norm_eps": norm_eps, "rope_theta": rope_theta, "rope_scaling_factor": rope_scaling_factor}
    config, warnings = resolve_config(args, sidecar, constants, where=str(first), vocab_size=rows)
    if config.vocab_size > rows:
        raise MismatchError(f"{folder / SIDECAR}: says {config.vocab_size} tokens, but the tables have {rows} rows.")
    return MegatronFolder(
        root=root,
        folder=folder,
        iteration=number,
        tp=tp,
        pp=pp,
        files=files,
        args=args,
        padded_vocab_size=rows,
        vocab_known="config" in sidecar,
        config=config,
        warnings=warnings,
    )


def plain_args(namespace: Any) -> dict[str, Any]:
    """Turn the saved `args` into a dictionary of plain values; enum members become their names."""
    values = vars(namespace) if isinstance(namespace, argparse.Namespace) else {}
    named = {name: value.name if isinstance(value, Enum) else value for name, value in values.items()}
    return {name: value for name, value in named.items() if not isinstance(value, pickles.Opaque)}


def resolve_config(
    args: Mapping[str, Any],
    sidecar: Mapping[str, Any],
    constants: Mapping[str, float | None],
    *,
    where: str,
    vocab_size: int,
) -> tuple[ModelConfig, tuple[str, ...]]:
    """Build the model's description from the saved arguments; returns it with the warnings to show.

    The original's resharding tool resets epsilon, rope theta and rope scaling to the parser's defaults. So each is taken from
    the first of: what the user gave (`constants`), our own `medsft.json`, the table of the family named by `model_name`
    (not for the scaling), the arguments.
    """
    _refuse_unknown_architecture(args, where)
    saved = Values(args, f"{where}: args")
    heads, hidden = saved.whole("num_attention_heads", high=_ANY_SIZE), saved.whole("hidden_size", high=_ANY_SIZE)
    layers = saved.whole("encoder_num_layers", default=None, high=_ANY_SIZE) or saved.whole("num_layers", high=_ANY_SIZE)
    positions = saved.whole("max_position_embeddings", default=None, high=_ANY_SIZE) or saved.whole(
        "seq_length", high=_ANY_SIZE
    )
    own = from_hf_config(Values(sidecar, SIDECAR).inner("config").raw, where=SIDECAR) if "config" in sidecar else None
    values, warnings = _trusted_constants(saved, own, constants, where)
    factor = values["rope_scaling_factor"]
    model_name, window = args.get("model_name"), saved.whole("sliding_window_size", default=None, low=0, high=_ANY_SIZE)
    llama_ids = args.get("tokenizer_type") == "SentencePieceTokenizer"
    config = ModelConfig(
        family=own.family if own else "mistral" if model_name == "mistral" or (not model_name and window) else "llama",
        vocab_size=own.vocab_size if own else vocab_size,
        hidden_size=hidden,
        intermediate_size=saved.whole("ffn_hidden_size", high=_ANY_SIZE),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=saved.whole("num_attention_heads_kv", default=heads, high=_ANY_SIZE),
        head_dim=saved.whole("kv_channels", default=None, high=_ANY_SIZE) or max(1, hidden // heads),
        norm_eps=values["norm_eps"],
        rope_theta=values["rope_theta"],
        rope_scaling={"rope_type": "linear", "factor": factor} if factor != 1 else None,
        max_position_embeddings=positions,
        tie_embeddings=own is not None and own.tie_embeddings,
        sliding_window=window or None,
        bos_token_id=own.bos_token_id if own else 1 if llama_ids else None,
        eos_token_id=own.eos_token_id if own else 2 if llama_ids else None,
    )
    check_sizes(config, f"{where}: args")
    return config, warnings


def _trusted_constants(
    args: Values, own: ModelConfig | None, given: Mapping[str, float | None], where: str
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Return the constants by name, and a warning for each saved one that is not believed."""
    model_name = args.raw.get("model_name")
    table_eps, table_theta = FAMILY_CONSTANTS.get(model_name if isinstance(model_name, str) else "", (None, None))
    ours = (own.norm_eps, own.rope_theta, _linear_factor(own)) if own else (None, None, None)
    saved = (
        args.number("layernorm_epsilon", default=None, high=1.0) or 1e-5,
        args.number("rope_theta", default=None) or 1e4,
        args.number("rope_scaling_factor", default=None) or 1.0,
    )
    values: dict[str, float] = {}
    warnings = []
    for option, mine, table, stored in zip(_CONSTANTS, ours, (table_eps, table_theta, None), saved, strict=True):
        candidates = (("", given.get(option)), (f"{SIDECAR} says", mine), (f"{model_name} has", table), ("", stored))
        who, values[option] = next((who, value) for who, value in candidates if value is not None)
        if who and values[option] != stored:
            warnings.append(
                f"{where}: {option} is {stored:g} in the saved arguments, but {who} {values[option]:g}, which is used. "
                f"(The original's resharding tool resets it; medsft convert --{option} {stored:g} keeps the saved value.)"
            )
    return values, tuple(warnings)


def _linear_factor(config: ModelConfig) -> float:
    return float(config.rope_scaling["factor"]) if config.rope_scaling else 1.0


def _refuse_unknown_architecture(args: Mapping[str, Any], where: str) -> None:
    """The original also trains Falcon, GPT and BERT; only its Llama-like models have our parts."""
    expected = {
        "use_rms_norm": True,
        "glu_activation": "swiglu",
        "position_embedding_type": "rotary",
        "tie_embed_logits": False,
        "use_bias": False,
        "parallel_attn": False,
        "parallel_layernorm": False,
        "use_post_ln": False,
    }
    name = args.get("model_name")
    if isinstance(name, str) and name in ("falcon", "gpt", "bert"):
        raise MismatchError(f"{where}: a `{name}` model is not supported.", hint="llama, llama2, codellama and mistral are.")
    for option, value in expected.items():
        given = args.get(option)
        plain = isinstance(given, (bool, str, float, NoneType))  # another value is not compared: it may be anything
        if option in args and (not plain or (given or False) != value):
            raise MismatchError(
                f"{where}: {option}={ascii(given)[:60] if plain else shown(given)} in the saved arguments; only models with "
                f"{value!r} are supported.",
                hint="llama, llama2, codellama and mistral have that.",
            )


def _iteration_folders(root: Path) -> dict[int, Path]:
    found = {}
    for folder in root.iterdir() if root.is_dir() else ():
        if (match := _ITERATION.fullmatch(folder.name)) and folder.is_dir():
            found[int(match[1])] = folder  # a file's name is too short for a number that Python refuses
    return dict(sorted(found.items()))


def _choose(root: Path, iteration: int | None) -> tuple[Path, int | None]:
    """Return the folder to read and its number, None for `release`."""
    if iteration is None:
        iteration = _tracked(root)
    if iteration == 0:
        folder, number = root / "release", None
    else:
        folder, number = _iteration_folders(root).get(iteration, root / f"iter_{iteration:07d}"), iteration
    if not folder.is_dir():
        there = [path.name for path in (root / "release", *_iteration_folders(root).values()) if path.is_dir()]
        raise MismatchError(
            f"{root}: there is no {folder.name} in it.", hint=f"It has: {', '.join(there) or 'no iteration at all'}."
        )
    return folder, number


def _tracked(root: Path) -> int:
    """Return the iteration that the tracker names, 0 for `release`."""
    path = root / TRACKER
    try:
        with path.open("rb") as file:
            word = file.read(100).decode("utf-8", "replace").strip()
    except FileNotFoundError:
        raise MismatchError(
            f"{root}: no {TRACKER} there.", hint="It holds the number of the iteration to read, or the word `release`."
        ) from None
    if word == "release":
        return 0
    if not (word.isascii() and word.isdecimal()) or len(word) > 12 or int(word) == 0:
        raise MismatchError(f"{path}: says {shown(word)}; expected a number above 0 or `release`.")
    return int(word)


def _rank_files(folder: Path) -> dict[tuple[int, int], Path]:
    """Find the weight files. Optimizer shards look like pipeline ranks by name, so what a folder holds decides."""
    files: dict[tuple[int, int], Path] = {}
    for rank in sorted(folder.iterdir()):
        match = _RANK.fullmatch(rank.name)
        present = [rank / name for name in WEIGHT_FILES if (rank / name).is_file()]
        if not match or not present:
            continue
        key = (int(match[1]), int(match[2] or 0))
        if key in files:
            raise MismatchError(f"{folder}: both {files[key].parent.name} and {rank.name} claim the same rank.")
        files[key] = present[0]
    return files


def _checked_layout(root: Path, folder: Path, files: Mapping[tuple[int, int], Path], args: Values) -> tuple[int, int]:
    """Return (tp, pp); the arguments say how many ranks there have to be, the folder's name must not contradict."""
    tp = args.whole("tensor_model_parallel_size", default=1 + max(t for t, _ in files), high=_MOST_RANKS)
    pp = args.whole("pipeline_model_parallel_size", default=1 + max(p for _, p in files), high=_MOST_RANKS)
    wanted = {(t, p) for t in range(tp) for p in range(pp)}
    missing = sorted(wanted - files.keys())
    if missing:
        names = ", ".join(rank_folder(t, p, pp) for t, p in missing[:8])
        raise MismatchError(
            f"{folder}: saved with tp={tp} pp={pp}, but {len(missing)} of {len(wanted)} ranks are missing: {names}.",
            hint="Copy them too; weights cannot be rebuilt from the others.",
        )
    extra = sorted(files.keys() - wanted)
    if extra:
        names = ", ".join(files[key].parent.name for key in extra[:8])
        raise MismatchError(f"{folder}: saved with tp={tp} pp={pp}, but there are also {names}: files of two checkpoints?")
    named = layout_in_name(root)
    if named and named != (tp, pp):
        raise MismatchError(
            f"{root}: the name says tp={named[0]} pp={named[1]}, but the ranks inside are tp={tp} pp={pp}.",
            hint="Rename the folder, or point to the one that was meant.",
        )
    return tp, pp


def rank_folder(tp_rank: int, stage: int, pp: int) -> str:
    """Return the name of a rank's folder; the stage is in it only when there is more than one."""
    return f"mp_rank_{tp_rank:02d}" + (f"_{stage:03d}" if pp > 1 else "")


def language_model(content: Any, where: Path) -> Mapping[str, Any]:
    """Return the `language_model` dictionary of a rank file, or of its first chunk with a virtual pipeline."""
    model = content.get("model", content.get("model0")) if isinstance(content, dict) else None
    inner = model.get("language_model") if isinstance(model, dict) else None
    if not isinstance(inner, dict):
        raise MismatchError(f"{where}: no model/language_model in it; not a language model of Megatron-LLM.")
    return inner


def embedding_table(language: Mapping[str, Any]) -> Any:
    """Return the embedding (a tensor, or its `TensorInfo`) in either spelling, or None."""
    embedding = language.get("embedding")
    embedding = embedding if isinstance(embedding, dict) else {}
    nested = embedding.get("word_embeddings")
    return (nested if isinstance(nested, dict) else {}).get("weight", embedding.get("word_embeddings.weight"))


def _embedding_rows(content: Any, where: Path) -> int:
    table = embedding_table(language_model(content, where))
    shape = getattr(table, "shape", ())
    if not shape:
        raise MismatchError(f"{where}: no word embedding in the first pipeline stage.")
    return int(shape[0])


def _read_sidecar(folder: Path) -> Mapping[str, Any]:
    path = folder / SIDECAR
    try:
        return read_object(path)
    except FileNotFoundError:
        return {}
