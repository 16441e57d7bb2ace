"""A set of another program: check what can be checked without knowing how it was made, then remember that it was."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from medsft.core.data.dataset.answers import count_by_role, counts_of
from medsft.core.data.dataset.dataset import TokenizedDataset, answers_path, document_blocks, open_tokenized, save_array
from medsft.core.data.dataset.indexed import IndexedReader
from medsft.core.data.dataset.manifest import Manifest, write_manifest
from medsft.core.data.tokenizers.base import OpenedTokenizer
from medsft.core.data.tokenizers.template import Role
from medsft.errors import DataError

_REMEDY = "tokenize the data again with --data and --retokenize"


def adopt(folder: Path, opened: OpenedTokenizer) -> TokenizedDataset:
    """Give a set without a manifest one, from its own files.

    Reads the whole set once. A folder that cannot be written stays without a manifest and is checked again next time.
    Raises DataError when the set cannot be right for this tokenizer.
    """
    data = open_tokenized(folder, trusted_only=False)
    if not data.num_documents:
        raise DataError(f"{folder} holds no documents", hint="give --data and --retokenize")
    for reader in (data.text, data.role):
        if not reader.starts_follow_sizes():
            raise DataError(f"{folder}: the documents do not follow one another in the files", hint=_REMEDY)
    text_sha256, highest, unknown = _digest(data.text, counted=opened.unknown_id)
    if highest >= opened.tokenizer.vocab_size:
        raise DataError(
            f"{folder} has token {highest}, but the tokenizer {opened.tokenizer.source} has only "
            f"{opened.tokenizer.vocab_size} tokens: it was made with another one",
            hint="give the tokenizer it was made with, or tokenize the data again",
        )
    role_sha256, highest_role, _ = _digest(data.role)
    if highest_role >= len(Role):
        raise DataError(f"{folder} has role {highest_role}; the roles are 0 to {len(Role) - 1}", hint=_REMEDY)
    counts = [count_by_role(data.role.span(*block)) for block in document_blocks(data.role)]
    by_role = counts_of(np.sum(counts, axis=0))
    manifest = Manifest(
        recipe=None,
        documents=data.num_documents,
        tokens=sum(by_role),
        tokens_by_role=by_role,
        vocab_size=opened.tokenizer.vocab_size,
        stop_id=opened.stop_id,
        unknown=unknown,
        text_bytes=data.text.nbytes,
        text_sha256=text_sha256,
        role_bytes=data.role.nbytes,
        role_sha256=role_sha256,
    )
    trusted = TokenizedDataset(folder, data.text, data.role, manifest)
    with suppress(OSError):
        save_array(answers_path(folder), trusted.scan_answers().columns())
        write_manifest(folder, manifest)
    return trusted


def _digest(reader: IndexedReader, *, counted: int | None = None) -> tuple[str, int, int]:
    """(SHA-256 of the ``.bin`` file, highest number in it, how often it has the number `counted`)."""
    digest, highest, times = hashlib.sha256(), 0, 0
    for first, last in document_blocks(reader):
        block = reader.span(first, last)
        digest.update(block.tobytes())
        highest = max(highest, int(block.max(initial=0)))
        times += 0 if counted is None else int(np.count_nonzero(block == counted))
    return digest.hexdigest(), highest, times
