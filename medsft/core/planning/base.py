"""The base model as a plan records it: its sizes, its tokenizer, what becomes of its vocabulary."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np

from medsft.core.config.options import format_number
from medsft.core.config.run_config import RunConfig
from medsft.core.data.dataset.dataset import document_blocks, open_tokenized
from medsft.core.data.tokenizers.base import OpenedTokenizer, Tokenizer
from medsft.core.data.tokenizers.open import find_tokenizer_file, no_tokenizer_beside, open_tokenizer
from medsft.core.models.adapter_base import base_to_begin_with
from medsft.core.models.adapter_folder import AdapterFolder, is_adapter, read_adapter
from medsft.core.models.inspect import BaseModel, inspect_ahead, inspect_base
from medsft.core.planning.base_plan import BasePlan, StartAdapter
from medsft.core.planning.plan import absolute
from medsft.core.planning.start_adapter import doubts_about_training_on, refuse_to_train_on, rows_of, with_values_of
from medsft.core.settings import CheckpointEntry
from medsft.errors import MismatchError

_SAMPLE_BYTES = 1 << 16
_TOKENS_LOOKED_AT = 1 << 20
_MOST_NEW_TOKENS = 16_384
"""Numbers of tokens beyond the base's tables. A table of as many more rows is not what a fine-tuning can train."""


def find_base(entry: CheckpointEntry, config: RunConfig, *, ahead: bool) -> BaseModel:
    """Return what lies at the entry's path; weights may be missing when one only looks `ahead`.

    Of an adapter that is its base model, with the adapter and its tokenizer. Raises `MismatchError` as `inspect_base` does, for
    an adapter that is damaged or cannot be trained on, and `ConfigError` when its base is not here.
    """

    def look(path: Path) -> BaseModel:
        return (inspect_ahead if ahead else inspect_base)(path, config.intermediate_iter)

    if is_adapter(entry.path):
        refuse_to_train_on(read_adapter(entry.path), config)
    remedy = f"Say where it is: medsft checkpoints add {entry.name} {format_number(entry.size)} {entry.path} --base BASE"
    base = base_to_begin_with(entry.path, entry.base, inspect=look, where="--checkpoint", remedy=remedy)
    if base.adapter is None:
        return base
    doubts = doubts_about_base(base.adapter, base) if base.size_bytes else []
    doubts += doubts_about_training_on(base.adapter, config)
    return replace(base, warnings=(*base.warnings, *doubts))


def with_adapter_of(config: RunConfig, base: BaseModel) -> RunConfig:
    """Return the config of a run that begins with `base`: as it is, or with what the adapter is that is trained on.

    Raises `ConfigError` for each value that is given otherwise.
    """
    return config if base.adapter is None else with_values_of(config, base.adapter)


def plan_base(
    config: RunConfig, entry: CheckpointEntry, base: BaseModel, *, in_use: frozenset[int] | None = None
) -> tuple[BasePlan, tuple[str, ...]]:
    """Return the base model with the tokens that the template adds, and what a person should know about the template.

    `in_use` are ids of tokens in the documents, as far as they were looked at; None before anything is tokenized.
    Raises `MismatchError` when the model cannot be told, has weights but no tokenizer, or the tokenizer of another model.
    """
    if base.config is None:
        raise MismatchError(f"{base.path}: cannot tell which model this is.", hint="Convert it first: medsft convert.")
    rows = base.config.vocab_size
    vocab, token_rows = rows, None
    new, reused, control = tuple[str, ...](), dict[str, int](), dict[str, int]()
    notes = tuple[str, ...]()
    source = entry.tokenizer or base.tokenizer
    if source is not None and config.rules.prefers_tokenizer_model:
        source = find_tokenizer_file(source, prefer_model_file=True)  # named, so that the export takes no other
    if source is not None:
        today = date.fromisoformat(config.template_date) if config.template_date else None
        opened = open_tokenizer(source, template=config.template, today=today)
        notes = opened.template.notes
        tokenizer = opened.tokenizer
        if tokenizer.vocab_size > rows + _MOST_NEW_TOKENS:
            raise MismatchError(
                f"{tokenizer.source}: its tokens have numbers up to {tokenizer.vocab_size - 1:,}, but the tables of the model "
                f"{rows:,} rows.",
                hint="It is the tokenizer of another model, or a number in it is wrong.",
            )
        # A Megatron-LLM table is padded and does not say how far; its tokenizer does.
        vocab = tokenizer.vocab_size if base.kind == "megatron" else max(rows, tokenizer.vocab_size)
        new = tuple(token for token, number in tokenizer.added_tokens if number >= rows)
        if config.rules.remakes_rows:
            token_rows = min(rows, tokenizer.vocab_size)
            reused = _in_the_padding(tokenizer, rows)
            control = _controlling(opened, in_use, rows, reused)
    elif base.size_bytes:
        raise no_tokenizer_beside(base.weights)
    start = _start(base.adapter)
    trained = start.rows if start is not None else ()
    if start is not None and trained and trained[-1] >= rows + _MOST_NEW_TOKENS:
        raise MismatchError(f"{start.path}: it has values for row {trained[-1]:,}, but the base model has {rows:,} rows.")
    vocab = max(vocab, trained[-1] + 1) if trained else vocab
    planned = BasePlan(
        path=absolute(base.path),
        kind=base.kind,
        iteration=base.iteration,
        fingerprint=sampled_fingerprint(base.weights),
        tokenizer=absolute(source) if source else "",
        model=base.config.with_vocab(vocab),
        base_vocab_size=rows,
        new_tokens=new,
        bytes=base.size_bytes,
        reused_rows={token: row for token, row in reused.items() if row not in trained},
        control_tokens={token: row for token, row in control.items() if row not in trained},
        token_rows=token_rows,
        adapter=start,
    )
    return planned, notes


def _start(adapter: AdapterFolder | None) -> StartAdapter | None:
    if adapter is None:
        return None
    fingerprint = sampled_fingerprint(adapter.weights)
    return StartAdapter(path=absolute(adapter.path), fingerprint=fingerprint, rows=rows_of(adapter))


def _in_the_padding(tokenizer: Tokenizer, rows: int) -> dict[str, int]:
    """Return the tokens that the base's tokenizer did not have and whose rows its tables have all the same, with their rows.

    Not of a `tokenizer.model`: the tokens that are added to it are the original's, and a model of the original may have trained
    them. Whether it did is seen by the rows.
    """
    if tokenizer.kind == "tokenizer.model":
        return {}
    return {token: row for token, row in tokenizer.added_tokens if row < rows}


def _controlling(
    opened: OpenedTokenizer, in_use: frozenset[int] | None, rows: int, reused: Mapping[str, int]
) -> dict[str, int]:
    """Return the control tokens that the documents hold, with their rows: the template's own before anything is tokenized."""
    wanted = {opened.stop_id, *(opened.tokenizer.special_ids.get(token) for token in opened.template.special_tokens)}
    used = wanted if in_use is None else in_use
    return {
        token: row
        for token, row in sorted(opened.tokenizer.special_ids.items(), key=lambda item: item[1])
        if row in used and row < rows and token not in reused
    }


def ids_in_use(folder: Path) -> frozenset[int]:
    """Return the ids in the first documents of a tokenized set: a template writes its control tokens into each.

    Raises `DataError` as `open_tokenized` does.
    """
    text = open_tokenized(folder).text
    blocks = document_blocks(text, _TOKENS_LOOKED_AT)
    return frozenset(np.unique(text.span(*blocks[0])).tolist()) if blocks else frozenset()


def sampled_fingerprint(weights: Path) -> str:
    """Return a cheap hash of a base model's files: names, sizes, and 64 KiB at the start, middle and end of each.

    A link counts as what it points to: a plan holds the resolved path, and a resume looks there.
    """
    weights = weights.resolve()
    files = [weights] if weights.is_file() else sorted(p for p in weights.rglob("*") if p.is_file() and _is_weight(p))
    total = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        total.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for start in (0, size // 2, max(0, size - _SAMPLE_BYTES)):
                file.seek(start)
                total.update(file.read(_SAMPLE_BYTES))
    return total.hexdigest()[:32]


def doubts_about_base(adapter: AdapterFolder, base: BaseModel) -> list[str]:
    """Return that a base model is not by its files the one that an adapter was trained on, where the adapter says which."""
    if adapter.base_fingerprint in ("", sampled_fingerprint(base.weights)):
        return []
    text = f"The files of {base.path} are not those that the adapter was trained on."
    return [f"{text} That is right for the same model in another format, and wrong for another model."]


def _is_weight(path: Path) -> bool:
    return path.suffix in (".safetensors", ".bin", ".pt", ".distcp", ".gguf")
