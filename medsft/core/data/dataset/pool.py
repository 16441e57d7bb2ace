"""Items through worker processes, in order and with bounded memory.

    items --> Map --> result, result, ...     (one result an item, in the order of the items)

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
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

from medsft.errors import DataError, LaunchError

_ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "FASTOKENS_BPE_THREADS": "1"}
"""For the libraries of a worker: there is one worker for each core."""
_SMALL_INPUT_BYTES = 4 * 2**20
"""Below this one process is done before others have started."""

Item = TypeVar("Item", contravariant=True)
Result = TypeVar("Result", covariant=True)


class Job(Protocol[Item, Result]):
    """What is done with each item. Small, and can be pickled: each worker gets a copy."""

    def open(self) -> Callable[[Item], Result]:
        """Load what the work needs, once in each process, and return the function of an item. Raises DataError."""


@contextmanager
def mapping(
    job: Job[Any, Result], *, input_bytes: int, workers: int | None, here: Callable[[Any], Result] | None = None
) -> Iterator[Callable[[Iterable[Any]], Iterator[Result]]]:
    """A function that maps items to results in order: in this process for a small input, else in `workers` others.

    `workers` None: as many as there are cores. `here` is the function of an item in this process, where it is open already.
    Raises LaunchError when a worker dies.
    """
    count = len(os.sched_getaffinity(0)) if workers is None and hasattr(os, "sched_getaffinity") else workers
    count = count or os.cpu_count() or 1
    if count == 1 or input_bytes < _SMALL_INPUT_BYTES:
        work = here or job.open()
        yield lambda items: (work(item) for item in items)
        return
    started = [_Worker(job) for _ in range(count)]
    executor = ThreadPoolExecutor(count, thread_name_prefix="worker")
    try:
        yield lambda items: _map_ordered(items, started, executor)
    finally:
        for worker in started:
            worker.end()
        executor.shutdown(cancel_futures=True)


def _map_ordered(items: Iterable[Any], workers: Sequence[_Worker], executor: ThreadPoolExecutor) -> Iterator[Any]:
    """Results in the order of the items, with at most two items a worker on the way."""
    idle: SimpleQueue[_Worker] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def ask(item: object) -> Any:
        worker = idle.get()
        try:
            return worker.ask(item)
        finally:
            idle.put(worker)

    waiting: deque[Future[Any]] = deque()
    for item in items:
        waiting.append(executor.submit(ask, item))
        if len(waiting) >= 2 * len(workers):
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


class _Worker:
    """A process that answers one item at a time."""

    def __init__(self, job: Job[Any, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | _ONE_THREAD | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self._unsent: list[object] = [job]

    def _send(self, value: object) -> None:
        assert self._process.stdin is not None
        pickle.dump(value, self._process.stdin, pickle.HIGHEST_PROTOCOL)
        self._process.stdin.flush()

    def ask(self, item: object) -> Any:
        """Hand over an item and wait for its result, or for the error that it raised."""
        assert self._process.stdout is not None
        self._unsent.append(item)
        try:
            while self._unsent:
                self._send(self._unsent.pop(0))
            answer = pickle.load(self._process.stdout)
        except (EOFError, OSError, ValueError, pickle.UnpicklingError):
            raise LaunchError(
                "a worker process ended unexpectedly",
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
    """The life of a worker: read the job from standard input, then answer items until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers itself
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    job: Job[Any, Any] = pickle.load(requests)
    work: Callable[[Any], Any] | None = None
    while True:
        try:
            item = pickle.load(requests)
        except EOFError:
            return
        answer: object
        try:
            work = work or job.open()
            answer = work(item)
        except DataError as error:
            answer = error
        pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()
