"""Blocks of input rows to encoded documents, in order, by as many processes as there are cores.

read_chunks --> Process --> ChunkResult, ChunkResult, ...     (one result a chunk, in the order of the chunks)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from medsft.core.data.dataset.encode import Document, EncodedDocuments, encode_rendered, render_document
from medsft.core.data.dataset.findings import Tally
from medsft.core.data.dataset.pool import mapping
from medsft.core.data.dataset.spec import TokenizeSpec
from medsft.core.data.sources.bad_rows import BadRows
from medsft.core.data.sources.base import BadRow, Block, RowSource
from medsft.core.data.sources.conversation import Conversation, parts_up_to_answers
from medsft.core.data.sources.open import open_rows
from medsft.core.data.sources.row_format import format_of
from medsft.core.data.tokenizers.base import OpenedTokenizer, TokenizerError
from medsft.core.data.tokenizers.turns import RewrittenError
from medsft.errors import DataError

_ONE_TURN = (("user", "assistant"), ("system", "user", "assistant"), ("text",))


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
    bad, tally, row_format = BadRows(), Tally(), format_of(spec.rows, chunk.file)
    documents: list[Document] = []
    numbers: list[int] = []
    writer = _Writer(spec, opened, only_check=not chunk.encode)
    for row in chunk.source.rows(chunk.block):
        try:
            fields = row.fields()
            conversation = row_format.conversation(fields)
            of_row = writer.documents(conversation)
        except BadRow as error:
            bad.add(chunk.source.place(row.number), error)
        except DataError as error:
            raise DataError(f"{chunk.source.place(row.number)}: {error.message}", hint=error.hint) from None
        else:
            documents += of_row
            numbers += [row.number] * len(of_row)
            if not chunk.encode:  # once is enough
                tally.add(fields, conversation, row_format, documents=len(of_row))
    encoded = None
    if chunk.encode:
        try:
            encoded = encode_rendered(documents, opened, control=spec.allows_control_tokens)
        except TokenizerError as error:
            raise _with_row(error, chunk, numbers, documents, opened, spec.allows_control_tokens) from None
    return ChunkResult(
        file=chunk.file, rows=len(documents), bad=bad, bytes_read=chunk.bytes_read, documents=encoded, tally=tally
    )


def _with_row(
    error: TokenizerError,
    chunk: Chunk,
    numbers: list[int],
    documents: list[Document],
    opened: OpenedTokenizer,
    control: bool,
) -> TokenizerError:
    """Return the error with the first row that brings it about on its own."""
    for number, document in zip(numbers, documents, strict=True):
        try:
            encode_rendered([document], opened, control=control)
        except TokenizerError:
            return TokenizerError(f"{chunk.source.place(number)}: {error.message}", hint=error.hint)
    return error


class _Writer:
    """Writes the rows of a chunk as the template has them, and refuses those that it cannot write.

    Rows of one turn are alike, so a check writes one of a chunk for each combination of roles; of several turns it writes all.
    """

    def __init__(self, spec: TokenizeSpec, opened: OpenedTokenizer, *, only_check: bool) -> None:
        self._spec, self._opened, self._only_check = spec, opened, only_check
        self._alike: set[tuple[str, ...]] = set()

    def documents(self, conversation: Conversation) -> list[Document]:
        """Return the documents of a row; a check leaves those empty that it need not write.

        Raises BadRow for a row that cannot be written, and DataError where that is no matter of a row: a template that rewrites
        the answers of every conversation (such rows are no slips, to be skipped and counted), and a row that a check passed.
        """
        parts = (conversation,) if self._spec.turns != "split" else parts_up_to_answers(conversation)
        return [self._document(part) for part in parts]

    def _document(self, part: Conversation) -> Document:
        roles = tuple(message.role for message in part)
        passed = roles in self._alike and not part[-1].reasoning
        if passed and self._only_check and self._spec.special_in_text != "error":
            return Document((), 0)
        try:
            document = self._written(part)
        except DataError as error:
            if passed or (isinstance(error, RewrittenError) and error.always and error.when_it_goes_on):
                raise
            raise BadRow(f"{error.message} ({error.hint})" if error.hint else error.message) from None
        if self._spec.special_in_text == "error" and any(map(self._opened.tokenizer.count_special, document.segments)):
            raise BadRow("a control token's name is in the text")
        if roles in _ONE_TURN and not part[-1].reasoning:
            self._alike.add(roles)
        return document

    def _written(self, part: Conversation) -> Document:
        if self._spec.turns == "all":
            return render_document(part, self._opened, only_last=False)
        try:
            return render_document(part, self._opened, only_last=True)
        except RewrittenError:
            until_answer = parts_up_to_answers(part)[-1]
            if until_answer == part:
                raise
            # The answer is rewritten for messages behind it, which nothing is learned from.
            return render_document(until_answer, self._opened, only_last=True)


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
