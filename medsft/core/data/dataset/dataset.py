"""A tokenized set on disk: ``FOLDER/NAME-text.{bin,idx}``, ``NAME-role.{bin,idx}`` and ``manifest.json``.

Opening is a few memory maps, whatever the number of documents.
"""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medsft.core.data.dataset.answers import Answers, answers_of_array, find_answers, joined
from medsft.core.data.dataset.indexed import IndexedReader, bin_path
from medsft.core.data.dataset.manifest import Manifest, read_manifest
from medsft.core.data.dataset.outlines import Outlines
from medsft.core.data.tokenizers.template import Role
from medsft.core.files import new_file
from medsft.errors import DataError

_BLOCK_TOKENS = 2**22
_REMEDY = "make the set again with --retokenize"
_VALIDATION = "-val"
"""Behind the name of a training set, that of its validation set."""


def text_prefix(folder: Path) -> Path:
    """The token files of a set without their endings; the set's name is its folder's."""
    return folder / f"{folder.name}-text"


def role_prefix(folder: Path) -> Path:
    """The role files of a set without their endings."""
    return folder / f"{folder.name}-role"


def answers_path(folder: Path) -> Path:
    """Where the answers lie in the documents, see `answers`, so that a plan need not read the roles."""
    return folder / f"{folder.name}-answers.npy"


def hashes_path(folder: Path) -> Path:
    """A number for the texts of each document's row, uint64 [documents], so that sets with rows in common are found."""
    return folder / f"{folder.name}-rows.npy"


def groups_path(folder: Path) -> Path:
    """A number for the group of each row (`--group_key`), uint64 [documents], of which a share is validated on as a whole."""
    return folder / f"{folder.name}-groups.npy"


def save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write and sync an array beside a set, so that there is never half of one."""
    with new_file(path) as stream:
        np.save(stream, array, allow_pickle=False)


def validation_folder_of(training: Path) -> Path:
    """The folder of the validation set that belongs to a training set."""
    return training.parent / f"{training.name}{_VALIDATION}"


def is_validation_folder(folder: Path) -> bool:
    """Whether the name of a set says that it is a validation set."""
    return folder.name.endswith(_VALIDATION)


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
        return dict(zip(Role, self.manifest.tokens_by_role, strict=False))

    @property
    def fingerprint(self) -> str:
        """Equal for sets with the same tokens and roles. Costs nothing: the manifest holds it."""
        return self.manifest.fingerprint

    @cached_property
    def answers(self) -> Answers:
        """Where the answers lie in the documents."""
        stored = self.stored_answers()
        return self.scan_answers() if stored is None else stored

    @cached_property
    def outlines(self) -> Outlines:
        """Lengths, places of answers, and which documents are plain text: those that are one answer with the role TEXT."""
        answers = self.answers
        texts = np.zeros(self.num_documents, bool)
        if self.tokens_by_role.get(Role.TEXT):
            whole = answers.document[(answers.first == 0) & (answers.behind == self.lengths[answers.document])]
            texts[whole] = self.role.first_numbers(whole) == Role.TEXT
        return Outlines(lengths=self.lengths, answers=answers, texts=texts)

    def stored_answers(self) -> Answers | None:
        """The answers as the file beside the set names them; None without one, or with one that has not room for all.

        Raises DataError when the file is damaged.
        """
        path = answers_path(self.folder)
        array = _load(path)
        if array is None:
            return None
        stored = answers_of_array(array, self.num_documents, answer_tail=self.manifest.answer_tail)
        if stored is None or not stored.fit(self.lengths):
            raise DataError(f"{path} is damaged", hint=_REMEDY)
        # A file of version 0.1.0 names one answer for each document, whatever lies between its first and its last token.
        trained = sum(tokens for role, tokens in self.tokens_by_role.items() if role.supervised)
        several = array.shape[1] == 2 and stored.num_tokens != trained
        return None if several else stored

    def answers_agree(self) -> bool:
        """Whether the file beside the set, where there is one, names the answers that the roles say. Reads all roles."""
        try:
            stored = self.stored_answers()
        except DataError:
            return False
        return stored is None or stored.same_as(self.scan_answers())

    def scan_answers(self) -> Answers:
        """Find the answers in the files of the set, read in blocks."""
        return joined([self._answers_between(first, last) for first, last in document_blocks(self.role)])

    def _answers_between(self, first: int, last: int) -> Answers:
        stop = self.manifest.stop_id
        return find_answers(
            self.role.span(first, last),
            self.role.sizes[first:last],
            stops=None if stop is None else self.text.span(first, last) == stop,
            answer_tail=self.manifest.answer_tail,
            first_document=first,
        )

    @cached_property
    def row_hashes(self) -> npt.NDArray[np.uint64] | None:
        """A number for the texts of each row, [documents]; None for a set without: one of before, or of another program."""
        return self._hashes(hashes_path(self.folder))

    @cached_property
    def group_hashes(self) -> npt.NDArray[np.uint64] | None:
        """A number for the group of each row, [documents]; None for a set that was made without `--group_key`."""
        return self._hashes(groups_path(self.folder))

    def _hashes(self, path: Path) -> npt.NDArray[np.uint64] | None:
        hashes = _load(path)
        if hashes is not None and hashes.shape != (self.num_documents,):
            raise DataError(f"{path} is damaged", hint=_REMEDY)
        return hashes


def _load(path: Path) -> npt.NDArray[Any] | None:
    """Map an array that lies beside a set, None when it is not there. Raises DataError when it is not an array."""
    if not path.is_file():
        return None
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        raise DataError(f"{path} is damaged", hint=_REMEDY) from None
    return array


def open_tokenized(folder: Path, *, trusted_only: bool = True) -> TokenizedDataset:
    """Open a set. Raises DataError when it is missing, incomplete, damaged or, with `trusted_only`, has no manifest."""
    if not set_exists(folder):
        raise DataError(f"{folder} holds no tokenized set", hint="make one with `medsft tokenize`, or give --data")
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


def document_blocks(reader: IndexedReader, tokens: int = _BLOCK_TOKENS) -> list[tuple[int, int]]:
    """Cut a set into runs of documents (first, behind the last) of about `tokens` tokens, to read it in little memory."""
    ends = np.cumsum(reader.sizes, dtype=np.int64)
    if not len(ends):
        return []
    cuts = np.unique(np.searchsorted(ends, np.arange(tokens, int(ends[-1]) + tokens, tokens)) + 1)
    bounds = [0, *np.minimum(cuts, len(ends)).tolist()]
    return [(first, last) for first, last in pairwise(bounds) if first < last]
