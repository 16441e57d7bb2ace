"""Blocks of input rows through worker processes, in order and with bounded memory.

    read_chunks --> Process --> ChunkResult, ChunkResult, ...     (one result a chunk, in the order of the chunks)

A worker is a fresh interpreter that speaks pickle over its own pipes. Unlike
`multiprocessing` it neither imports the caller's main module again (a library user's script needs no ``__main__``
guard) nor forks a process that has threads. It ends when its input does, also when its parent was killed.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue

from medsft.core.data.dataset.encode import EncodedDocuments, encode_documents
from medsft.core.data.dataset.findings import Tally
from medsft.core.data.dataset.spec import TokenizeSpec
from medsft.core.data.sources.bad_rows import BadRows
from medsft.core.data.sources.base import BadRow, Block, RowSource
from medsft.core.data.sources.conversation import Conversation
from medsft.core.data.sources.open import open_rows
from medsft.core.data.tokenizers.base import OpenedTokenizer, TokenizerError
from medsft.errors import DataError, LaunchError

_ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "FASTOKENS_BPE_THREADS": "1"}
"""For the tokenizers of a worker: there is one for each core."""
_SMALL_INPUT_BYTES = 4 * 2**20
"""Below this one process is done before others have started."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What a worker is handed."""

    source: RowSource
    """The file of these rows."""
    block: Block
    bytes_read: int
    """Of all files, up to the end of these rows."""
    encode: bool
    """False: only check the rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkResult:
    """What became of a chunk."""

    rows: int
    bad: BadRows
    bytes_read: int
    documents: EncodedDocuments | None
    tally: Tally
    """Of the rows that can be used, unless they were encoded"""


def read_chunks(files: Sequence[Path], *, encode: bool) -> Iterator[Chunk]:
    """The rows of all files in order, a block at a time. Raises DataError for a file that cannot be read."""
    before = 0
    for path in files:
        source, read = open_rows(path), 0
        for block in source.blocks():
            read = block.bytes_read
            yield Chunk(source, block, before + read, encode)
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
    return ChunkResult(rows=len(conversations), bad=bad, bytes_read=chunk.bytes_read, documents=documents, tally=tally)


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


@contextmanager
def processing(spec: TokenizeSpec, opened: OpenedTokenizer, *, input_bytes: int, workers: int | None) -> Iterator[Process]:
    """A function that maps chunks to results in order: in this process for a small input, else in `workers` others.

    `workers` None: as many as there are cores. Raises LaunchError when a worker dies.
    """
    count = len(os.sched_getaffinity(0)) if workers is None and hasattr(os, "sched_getaffinity") else workers
    count = count or os.cpu_count() or 1
    if count == 1 or input_bytes < _SMALL_INPUT_BYTES:
        yield lambda chunks: (process_chunk(chunk, spec, opened) for chunk in chunks)
        return
    started = [_Worker(replace(spec, tokenizer=opened.tokenizer.source)) for _ in range(count)]
    executor = ThreadPoolExecutor(count, thread_name_prefix="tokenize")
    try:
        yield lambda chunks: _map_ordered(chunks, started, executor)
    finally:
        for worker in started:
            worker.end()
        executor.shutdown(cancel_futures=True)


def _map_ordered(chunks: Iterable[Chunk], workers: Sequence[_Worker], executor: ThreadPoolExecutor) -> Iterator[ChunkResult]:
    """Results in the order of the chunks, with at most two chunks a worker on the way."""
    idle: SimpleQueue[_Worker] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def ask(chunk: Chunk) -> ChunkResult:
        worker = idle.get()
        try:
            return worker.ask(chunk)
        finally:
            idle.put(worker)

    waiting: deque[Future[ChunkResult]] = deque()
    for chunk in chunks:
        waiting.append(executor.submit(ask, chunk))
        if len(waiting) >= 2 * len(workers):
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


class _Worker:
    """A process that answers one chunk at a time."""

    def __init__(self, spec: TokenizeSpec) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | _ONE_THREAD | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self._unsent: list[object] = [spec]

    def _send(self, value: object) -> None:
        assert self._process.stdin is not None
        pickle.dump(value, self._process.stdin, pickle.HIGHEST_PROTOCOL)
        self._process.stdin.flush()

    def ask(self, chunk: Chunk) -> ChunkResult:
        """Hand over a chunk and wait for its result, or for the error that it raised."""
        assert self._process.stdout is not None
        self._unsent.append(chunk)
        try:
            while self._unsent:
                self._send(self._unsent.pop(0))
            answer = pickle.load(self._process.stdout)
        except (EOFError, OSError, ValueError, pickle.UnpicklingError):
            raise LaunchError(
                "a tokenizing process ended unexpectedly",
                hint="it may have run out of memory; try again, with fewer cores (taskset) if it happens again",
            ) from None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def end(self) -> None:
        """Stop the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what was not sent yet has nowhere to go
                    pipe.close()


def serve() -> None:
    """The life of a worker: read the spec from standard input, then answer chunks until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers itself
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    spec: TokenizeSpec = pickle.load(requests)
    opened: OpenedTokenizer | None = None
    while True:
        try:
            chunk: Chunk = pickle.load(requests)
        except EOFError:
            return
        answer: ChunkResult | DataError
        try:
            opened = opened or spec.open_tokenizer()
            answer = process_chunk(chunk, spec, opened)
        except DataError as error:
            answer = error
        pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()
