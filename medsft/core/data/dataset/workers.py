"""Blocks of input rows to encoded documents, in order, by as many processes as there are cores.

read_chunks --> Process --> ChunkResult, ChunkResult, ...     (one result a chunk, in the order of the chunks)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from medsft.core.data.dataset.encode import EncodedDocuments, encode_documents
from medsft.core.data.dataset.findings import Tally
from medsft.core.data.dataset.pool import mapping
from medsft.core.data.dataset.spec import TokenizeSpec
from medsft.core.data.sources.bad_rows import BadRows
from medsft.core.data.sources.base import BadRow, Block, RowSource
from medsft.core.data.sources.conversation import Conversation
from medsft.core.data.sources.open import open_rows
from medsft.core.data.tokenizers.base import OpenedTokenizer, TokenizerError


@dataclass(frozen=True, slots=True)
class Chunk:
    """What a worker is handed."""

    source: RowSource
    """The file of these rows."""
    file: int
    """Its number among all files."""
    block: Block
    bytes_read: int
    """Of all files, up to the end of these rows."""
    encode: bool
    """False: only check the rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkResult:
    """What became of a chunk."""

    file: int
    """See `Chunk`."""
    rows: int
    bad: BadRows
    bytes_read: int
    documents: EncodedDocuments | None
    tally: Tally
    """Of the rows that can be used, unless they were encoded"""


def read_chunks(files: Sequence[Path], *, encode: bool) -> Iterator[Chunk]:
    """The rows of all files in order, a block at a time. Raises DataError for a file that cannot be read."""
    before = 0
    for file, path in enumerate(files):
        source, read = open_rows(path), 0
        for block in source.blocks():
            read = block.bytes_read
            yield Chunk(source, file, block, before + read, encode)
        before += read


def process_chunk(chunk: Chunk, spec: TokenizeSpec, opened: OpenedTokenizer) -> ChunkResult:
    """Read the rows of a chunk and, unless it is only a check, tokenize the good ones."""
    bad, tally = BadRows(), Tally(spec.rows)
    conversations: list[Conversation] = []
    numbers: list[int] = []
    for row in chunk.source.rows(chunk.block):
        try:
            fields = row.fields()
            conversation = spec.rows.conversation(fields)
            if spec.special_in_text == "error":
                _refuse_special(conversation, opened)
        except BadRow as error:
            bad.add(chunk.source.place(row.number), error)
        else:
            conversations.append(conversation)
            numbers.append(row.number)
            if not chunk.encode:  # once is enough
                tally.add(fields, conversation)
    documents = None
    if chunk.encode:
        control = spec.allows_control_tokens
        try:
            documents = encode_documents(conversations, opened, control=control)
        except TokenizerError as error:
            raise _with_row(error, chunk, numbers, conversations, opened, control) from None
    return ChunkResult(
        file=chunk.file, rows=len(conversations), bad=bad, bytes_read=chunk.bytes_read, documents=documents, tally=tally
    )


def _with_row(
    error: TokenizerError,
    chunk: Chunk,
    numbers: list[int],
    conversations: list[Conversation],
    opened: OpenedTokenizer,
    control: bool,
) -> TokenizerError:
    """Return the error with the first row that brings it about on its own."""
    for number, conversation in zip(numbers, conversations, strict=True):
        try:
            encode_documents([conversation], opened, control=control)
        except TokenizerError:
            return TokenizerError(f"{chunk.source.place(number)}: {error.message}", hint=error.hint)
    return error


def _refuse_special(conversation: Conversation, opened: OpenedTokenizer) -> None:
    if any(map(opened.tokenizer.count_special, opened.template.render(conversation))):
        raise BadRow("a control token's name is in the text")


Process = Callable[[Iterable[Chunk]], Iterator[ChunkResult]]


@dataclass(frozen=True, slots=True)
class _Tokenizing:
    """The work of a tokenizing process."""

    spec: TokenizeSpec

    def open(self) -> Callable[[Chunk], ChunkResult]:
        return partial(process_chunk, spec=self.spec, opened=self.spec.open_tokenizer())


def processing(
    spec: TokenizeSpec, opened: OpenedTokenizer, *, input_bytes: int, workers: int | None
) -> AbstractContextManager[Process]:
    """A function that maps chunks to results in order: in this process for a small input, else in `workers` others.

    `workers` None: as many as there are cores. Raises LaunchError when a worker dies.
    """
    job = _Tokenizing(replace(spec, tokenizer=opened.tokenizer.source))
    here = partial(process_chunk, spec=spec, opened=opened)
    return mapping(job, input_bytes=input_bytes, workers=workers, here=here)
