"""Tokenized sets made directly of token and role arrays, for documents that no template writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medsft.core.data.dataset.answers import count_by_role, counts_of
from medsft.core.data.dataset.dataset import TokenizedDataset, open_tokenized, role_prefix, text_prefix
from medsft.core.data.dataset.indexed import IndexedWriter, bin_path
from medsft.core.data.dataset.manifest import Manifest, write_manifest
from medsft.core.data.tokenizers.template import Role


def write_set(
    folder: Path, tokens: Sequence[Sequence[int]], roles: Sequence[Sequence[int]], *, stop_id: int | None, vocab_size: int
) -> TokenizedDataset:
    """Write and open the set of these documents. It has no answers file, so that answers are found in the roles."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = np.array([len(document) for document in roles])
    flat = np.concatenate([np.asarray(document) for document in roles])
    with IndexedWriter(text_prefix(folder), "<u2") as text, IndexedWriter(role_prefix(folder), "<u2") as role:
        text.add(np.concatenate([np.asarray(document) for document in tokens]), sizes)
        role.add(flat, sizes)
        wrote_text, wrote_role = text.close(), role.close()
    manifest = Manifest(
        recipe=None,
        documents=len(sizes),
        tokens=len(flat),
        tokens_by_role=counts_of(count_by_role(flat)),
        vocab_size=vocab_size,
        stop_id=stop_id,
        text_bytes=bin_path(text_prefix(folder)).stat().st_size,
        text_sha256=wrote_text.sha256,
        role_bytes=bin_path(role_prefix(folder)).stat().st_size,
        role_sha256=wrote_role.sha256,
    )
    write_manifest(folder, manifest)
    return open_tokenized(folder)


def write_conversations(folder: Path, *, documents: int, stop_id: int, vocab_size: int, seed: int = 0) -> TokenizedDataset:
    """Write and open a set of random conversations of one to five turns, and of a text in every fifth document."""
    random = np.random.default_rng(seed)
    roles: list[list[int]] = []
    tokens: list[list[int]] = []
    for number in range(documents):
        parts = [(Role.TEXT, int(random.integers(2, 60)))] if number % 5 == 4 else []
        if not parts:
            for _ in range(int(random.integers(1, 6))):
                parts += [(Role.QUESTION, int(random.integers(2, 7))), (Role.ANSWER, int(random.integers(3, 9)))]
        ids: list[int] = []
        for role, size in parts:
            ids += random.integers(0, stop_id, size).tolist()
            if role == Role.ANSWER:
                ids[-2] = stop_id
        roles.append([int(role) for role, size in parts for _ in range(size)])
        tokens.append(ids)
    return write_set(folder, tokens, roles, stop_id=stop_id, vocab_size=vocab_size)
