"""A tokenised set on disk: ``FOLDER/NAME-text.{bin,idx}``, ``NAME-role.{bin,idx}`` and ``manifest.json``.

Opening is a few memory maps, whatever the number of documents.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medsft.core.data.dataset.indexed import IndexedReader, bin_path
from medsft.core.data.dataset.manifest import Manifest, read_manifest
from medsft.core.data.tokenizers.template import Role
from medsft.errors import DataError

_BLOCK_TOKENS = 2**22
_REMEDY = "make the set again with --retokenize"


def text_prefix(folder: Path) -> Path:
    """The token files of a set without their endings; the set's name is its folder's."""
    return folder / f"{folder.name}-text"


def role_prefix(folder: Path) -> Path:
    """The role files of a set without their endings."""
    return folder / f"{folder.name}-role"


def spans_path(folder: Path) -> Path:
    """Where the answer lies in each document, [documents, 2], so that a plan need not read the roles."""
    return folder / f"{folder.name}-answers.npy"


def hashes_path(folder: Path) -> Path:
    """A number for the texts of each row, [documents], so that sets with rows in common are found."""
    return folder / f"{folder.name}-rows.npy"


def save_spans(folder: Path, spans: npt.NDArray[np.int32]) -> None:
    """Write and sync the answers' places of a set, aside first."""
    _save(spans_path(folder), spans)


def save_hashes(folder: Path, hashes: npt.NDArray[np.uint64]) -> None:
    """Write and sync the numbers of the rows of a set, aside first."""
    _save(hashes_path(folder), hashes)


def _save(path: Path, array: npt.NDArray[Any]) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)
        stream.flush()
        os.fsync(stream.fileno())
    aside.replace(path)


def set_exists(folder: Path) -> bool:
    """Whether there is a set, possibly an incomplete one."""
    return bin_path(text_prefix(folder)).exists()


class TokenizedDataset:
    """Documents of a set. Arrays are views of the mapped files: do not write to them."""

    def __init__(self, folder: Path, text: IndexedReader, role: IndexedReader, manifest: Manifest | None) -> None:
        self.folder = folder
        self.text = text
        self.role = role
        self._manifest = manifest

    @property
    def manifest(self) -> Manifest:
        """What the set was made of. Raises DataError for a set of another program that was not trusted yet."""
        if self._manifest is None:
            raise _no_manifest(self.folder)
        return self._manifest

    @property
    def num_documents(self) -> int:
        """Number of documents."""
        return len(self.text)

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens in each document, [documents]."""
        return self.text.sizes.astype(np.int64)

    def tokens(self, document: int) -> npt.NDArray[Any]:
        """Token ids of a document, [length], uint16 or int32."""
        return self.text[document]

    def roles(self, document: int) -> npt.NDArray[np.uint16]:
        """`Role` of each token of a document, [length]."""
        return self.role[document]

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return self.manifest.tokens

    @property
    def tokens_by_role(self) -> dict[Role, int]:
        """Tokens of each role in all documents."""
        return dict(zip(Role, self.manifest.tokens_by_role, strict=True))

    @property
    def fingerprint(self) -> str:
        """Equal for sets with the same tokens and roles. Costs nothing: the manifest holds it."""
        return self.manifest.fingerprint

    @cached_property
    def answer_spans(self) -> npt.NDArray[np.int32]:
        """First position of the answer in each document and the one behind its last, [documents, 2]; (0, 0) if none."""
        spans = _load(spans_path(self.folder), (self.num_documents, 2))
        return scan_roles(self.role).spans if spans is None else spans

    @cached_property
    def row_hashes(self) -> npt.NDArray[np.uint64] | None:
        """A number for the texts of each row, [documents]; None for a set without: one of before, or of another program."""
        return _load(hashes_path(self.folder), (self.num_documents,))


def _load(path: Path, shape: tuple[int, ...]) -> npt.NDArray[Any] | None:
    """Map an array that lies beside a set, None when it is not there. Raises DataError when it is damaged."""
    if not path.is_file():
        return None
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        array = np.empty(0)
    if array.shape != shape:
        raise DataError(f"{path} is damaged", hint=_REMEDY)
    return array


def open_tokenized(folder: Path, *, trusted_only: bool = True) -> TokenizedDataset:
    """Open a set. Raises DataError when it is missing, incomplete, damaged or, with `trusted_only`, has no manifest."""
    if not set_exists(folder):
        raise DataError(f"{folder} holds no tokenised set", hint="make one with `medsft tokenize`, or give --data")
    text, role = IndexedReader(text_prefix(folder)), IndexedReader(role_prefix(folder))
    if len(text) != len(role) or not np.array_equal(text.sizes, role.sizes):
        raise DataError(f"{folder}: the text and the role files do not belong together", hint=_REMEDY)
    manifest = read_manifest(folder)
    if manifest is None and trusted_only:
        raise _no_manifest(folder)
    if manifest is not None and _described(text, role) != (
        manifest.text_bytes,
        manifest.role_bytes,
        manifest.documents,
    ):
        raise DataError(f"{folder}: the files are not those that its manifest.json describes", hint=_REMEDY)
    return TokenizedDataset(folder, text, role, manifest)


def _described(text: IndexedReader, role: IndexedReader) -> tuple[int, int, int]:
    return text.nbytes, role.nbytes, len(text)


def _no_manifest(folder: Path) -> DataError:
    return DataError(
        f"{folder} has no manifest.json: nothing says which data, keys, tokenizer and template it was made with",
        hint="if you know that it is right (a set of Megatron-LLM, say), use it with --trust_cache; "
        "or make it again with --data and --retokenize",
    )


@dataclass(frozen=True, slots=True)
class RoleFacts:
    """What the roles of some documents say."""

    spans: npt.NDArray[np.int32]
    """[documents, 2], see `TokenizedDataset.answer_spans`"""
    counts: npt.NDArray[np.int64]
    """Tokens by role number; longer than 3 if there is a role that is none"""


def role_facts(roles: npt.NDArray[np.integer[Any]], sizes: npt.NDArray[np.integer[Any]]) -> RoleFacts:
    """Facts of documents laid end to end: `roles` [sum of sizes], `sizes` [documents]."""
    ends = np.cumsum(sizes, dtype=np.int64)
    starts = ends - sizes
    answer = np.flatnonzero(roles == Role.ANSWER)
    first, behind = np.searchsorted(answer, starts), np.searchsorted(answer, ends)
    spans = np.zeros((len(sizes), 2), np.int32)
    has = behind > first
    spans[has, 0] = answer[first[has]] - starts[has]
    spans[has, 1] = answer[behind[has] - 1] + 1 - starts[has]
    return RoleFacts(spans, np.bincount(roles, minlength=len(Role)))


def document_blocks(reader: IndexedReader, tokens: int = _BLOCK_TOKENS) -> list[tuple[int, int]]:
    """Cut a set into runs of documents (first, behind the last) of about `tokens` tokens, to read it in little memory."""
    ends = np.cumsum(reader.sizes, dtype=np.int64)
    if not len(ends):
        return []
    cuts = np.unique(np.searchsorted(ends, np.arange(tokens, int(ends[-1]) + tokens, tokens)) + 1)
    bounds = [0, *np.minimum(cuts, len(ends)).tolist()]
    return [(first, last) for first, last in pairwise(bounds) if first < last]


def scan_roles(reader: IndexedReader) -> RoleFacts:
    """Facts of a whole role file, read in blocks."""
    facts = [role_facts(reader.span(a, b), reader.sizes[a:b]) for a, b in document_blocks(reader)]
    if not facts:
        return RoleFacts(np.zeros((0, 2), np.int32), np.zeros(len(Role), np.int64))
    counts = np.zeros(max(len(fact.counts) for fact in facts), np.int64)
    for fact in facts:
        counts[: len(fact.counts)] += fact.counts
    return RoleFacts(np.concatenate([fact.spans for fact in facts]), counts)
