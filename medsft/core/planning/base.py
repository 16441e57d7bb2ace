"""The base model as a plan records it: its sizes, its tokenizer, what becomes of its vocabulary."""

from __future__ import annotations

import hashlib
from pathlib import Path

from medsft.core.basemodel import BaseModel, describe_without_weights, inspect_base, lacks_weights
from medsft.core.config import RunConfig
from medsft.core.data.tokenizers import find_tokenizer_file, open_tokenizer
from medsft.core.planning.plan import BasePlan, absolute
from medsft.core.registry import CheckpointEntry
from medsft.errors import MismatchError

_SAMPLE_BYTES = 1 << 16


def find_base(entry: CheckpointEntry, config: RunConfig, *, ahead: bool) -> BaseModel:
    """Return what lies at the entry's path; weights may be missing when one only looks `ahead`.

    Raises `MismatchError` as `inspect_base` does.
    """
    if ahead and lacks_weights(entry.path):
        return describe_without_weights(entry.path)
    return inspect_base(entry.path, config.intermediate_iter)


def plan_base(config: RunConfig, entry: CheckpointEntry, base: BaseModel) -> BasePlan:
    """Return the base model with the tokens that the template adds.

    Raises `MismatchError` when the model cannot be told, or has weights but no tokenizer.
    """
    if base.config is None:
        raise MismatchError(f"{base.path}: cannot tell which model this is.", hint="Convert it first: medsft convert.")
    rows = base.config.vocab_size
    vocab, new = rows, tuple[str, ...]()
    source = entry.tokenizer or base.tokenizer
    if source is not None and config.follows_original:
        source = find_tokenizer_file(source, prefer_model_file=True)  # named, so that the export takes no other
    if source is not None:
        tokenizer = open_tokenizer(source, template=config.template).tokenizer
        # A Megatron-LLM table is padded and does not say how far; its tokenizer does.
        vocab = tokenizer.vocab_size if base.kind == "megatron" else max(rows, tokenizer.vocab_size)
        new = tuple(token for token, number in tokenizer.added_tokens if number >= rows)
    elif base.size_bytes:
        raise MismatchError(
            f"{base.path}: no tokenizer beside the model.",
            hint='Name it in medsft.toml: { path = "...", tokenizer = "..." }.',
        )
    return BasePlan(
        path=absolute(base.path),
        kind=base.kind,
        iteration=base.iteration,
        fingerprint=sampled_fingerprint(base.weights),
        tokenizer=absolute(source) if source else "",
        model=base.config.with_vocab(vocab),
        base_vocab_size=rows,
        new_tokens=new,
        bytes=base.size_bytes,
    )


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


def _is_weight(path: Path) -> bool:
    return path.suffix in (".safetensors", ".bin", ".pt", ".distcp", ".gguf")
