"""Copies documents of a tokenized set into a set of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medsft.core.data.dataset.answers import count_by_role, counts_of
from medsft.core.data.dataset.dataset import TokenizedDataset, open_tokenized, role_prefix, text_prefix
from medsft.core.data.dataset.indexed import IndexedWriter, bin_path
from medsft.core.data.dataset.manifest import Manifest, write_manifest
from medsft.core.data.dataset.subset import Subset


def copy_documents(data: TokenizedDataset, subset: Subset, folder: Path) -> TokenizedDataset:
    """Write the set `folder` with what these positions read, a document for each, in this order; one may occur more than once.

    For small sets: everything is copied through memory. Its manifest names no recipe, so it is never taken for the source.
    """
    folder.mkdir(parents=True)
    sizes, spans = subset.lengths, [(int(index), subset.span(position)) for position, index in enumerate(subset.indices)]
    tokens = np.concatenate([data.tokens(document)[span] for document, span in spans])
    roles = np.concatenate([data.roles(document)[span] for document, span in spans])
    with (
        IndexedWriter(text_prefix(folder), tokens.dtype) as text_writer,
        IndexedWriter(role_prefix(folder), np.uint16) as role_writer,
    ):
        text_writer.add(tokens, sizes)
        role_writer.add(roles, sizes)
        text, role = text_writer.close(), role_writer.close()
    source = data.manifest
    manifest = Manifest(
        recipe=None,
        documents=len(sizes),
        tokens=len(tokens),
        tokens_by_role=counts_of(count_by_role(roles)),
        vocab_size=source.vocab_size,
        stop_id=source.stop_id,
        answer_tail=source.answer_tail,
        notes=source.notes,
        text_bytes=bin_path(text_prefix(folder)).stat().st_size,
        text_sha256=text.sha256,
        role_bytes=bin_path(role_prefix(folder)).stat().st_size,
        role_sha256=role.sha256,
    )
    write_manifest(folder, manifest)
    return open_tokenized(folder)
