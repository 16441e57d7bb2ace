"""Tokenized sets made directly of token and role arrays, for documents that no template writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medsft.core.data.dataset.answers import count_by_role, counts_of
from medsft.core.data.dataset.dataset import TokenizedDataset, open_tokenized, role_prefix, text_prefix
from medsft.core.data.dataset.indexed import IndexedWriter, bin_path
from medsft.core.data.dataset.manifest import Manifest, write_manifest


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
