"""What a model is asked, and what it answers: lines of JSON between this process and those of the engine. No torch.

    requests --a file of lines--> engine processes, one for each device --lines--> answers, as they come

Answers can be kept in a file. A second call with that file computes only what is not in it: each answer carries a hash of its
request, and the file begins with what was asked: another model or precision begins a new one. Requests and answers are
token ids, which can be read by whoever has the tokenizer, so files of them are as private as the text.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO, Literal

from medsft.core.devices import Devices, find_devices
from medsft.core.evaluation.model import ModelSource
from medsft.core.planning.layout import Layout
from medsft.core.run.engine_lines import EngineLines
from medsft.errors import ConfigError, MismatchError, Problem

Precision = Literal["bf16", "fp32"]
ONE_PROCESS = Layout()


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How likely is each of these continuations of one text?"""

    id: str
    prefix: tuple[int, ...]
    """At least one token."""
    continuations: tuple[tuple[int, ...], ...]
    """Each of at least one token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generate:
    """How does the model go on?"""

    id: str
    prompt: tuple[int, ...]
    """At least one token."""
    max_new_tokens: int
    ends: tuple[int, ...] = ()
    """Ids that end the answer, and are no part of it."""
    stop_strings: tuple[str, ...] = ()
    """Texts that end the answer; it goes up to the token that completes one, `cut_at` takes the rest away."""
    temperature: float = 0.0
    """0: always the most likely token."""
    top_p: float = 1.0
    """Draw from the most likely tokens that have this probability together."""
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The answer to a `Score`: a number for each continuation."""

    id: str
    log_likelihoods: tuple[float, ...]
    """Sum of log p over the tokens of the continuation, in nats."""
    num_tokens: tuple[int, ...]
    greedy: tuple[bool, ...]
    """Whether each of its tokens is the most likely one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """The answer to a `Generate`."""

    id: str
    ids: tuple[int, ...]
    """Without the id that ended it."""
    ended: Literal["end", "stop", "length"]
    """By one of the ids, by one of the texts, or because it may not be longer."""


Request = Score | Generate
Answer = Scored | Generated
_KINDS: Mapping[str, type[Request | Answer]] = {kind.__name__: kind for kind in (Score, Generate, Scored, Generated)}


def to_json(record: Request | Answer) -> dict[str, Any]:
    """Return a request or an answer for JSON."""
    return {"kind": type(record).__name__, **asdict(record)}


def from_json(raw: Mapping[str, Any]) -> Any:
    """Return the request or the answer that `to_json` was called on; other fields are left out. Raises KeyError, TypeError."""
    kind = _KINDS[raw["kind"]]
    return kind(**{name: _frozen(raw[name]) for name in kind.__dataclass_fields__})


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def cut_at(text: str, stop_strings: Sequence[str]) -> str:
    """Return a text up to where the first of the strings begins."""
    return text[: min((at for stop in stop_strings if (at := text.find(stop)) >= 0), default=len(text))]


def default_precision() -> Precision:
    """Return the format that this machine computes fastest in."""
    return "bf16" if find_devices().bf16 else "fp32"


def answer(
    model: ModelSource,
    requests: Sequence[Request],
    *,
    precision: Precision | None = None,
    processes: int | None = None,
    layout: Layout = ONE_PROCESS,
    keep: Path | None = None,
) -> Generator[Answer, None, None]:
    """Ask a model and yield its answers as they come, in any order: first those that `keep` already holds.

    `precision` None is the fastest here; `processes` None is one for each GPU, or one with all cores. With a `layout` its
    processes hold the model together, and score; nothing can be generated then. Closing the iterator ends
    the processes. Raises ValueError for ids that are not unique, ConfigError for a layout that this machine or these requests
    cannot have, MismatchError for likelihoods that are no numbers, `EngineError` for what the engine reports.
    """
    digests = {request.id: _digest(request) for request in requests}
    if len(digests) != len(requests):
        raise ValueError("two requests have the same id")
    devices = find_devices()
    _check_layout(layout, requests, devices)
    precision = precision or default_precision()
    processes = processes or (devices.count if devices.kind == "cuda" else 1)
    header = {"model": model.identity(), "precision": precision}
    ids = 1 + max((id_ for request in requests for id_ in highest_ids(request)), default=-1)
    with ExitStack() as stack:
        kept = stack.enter_context(_KeptAnswers(keep, header)) if keep else None
        there = kept.answers(digests) if kept else {}
        yield from there.values()
        left = [request for request in requests if request.id not in there]
        for found in _ask(engine_arguments(model, precision, ids), left, processes, layout, stack) if left else ():
            if isinstance(found, Scored) and not all(map(math.isfinite, found.log_likelihoods)):
                raise not_finite(model.name)
            if kept:
                kept.add(found, digests[found.id])
            yield found


def not_finite(model: str) -> MismatchError:
    """Return what a person is told of a model that computes no numbers: what it answers would be chosen by chance."""
    hint = "Its weights are damaged, or too large for this number format: try --precision fp32, or copy the model again."
    return MismatchError(f"{model}: what the model computes are no finite numbers.", hint=hint)


def engine_arguments(model: ModelSource, precision: Precision, ids: int) -> list[str]:
    """Return the arguments of the engine's program for a model and prompts with ids below `ids`."""
    return ["--model", json.dumps(model.to_json()), "--precision", precision, "--ids", str(ids)]


def highest_ids(request: Request) -> tuple[int, ...]:
    """Return some ids of a request, its highest among them."""
    if isinstance(request, Score):
        return (max(request.prefix), *map(max, request.continuations))
    return (max(request.prompt),)


def _check_layout(layout: Layout, requests: Sequence[Request], devices: Devices) -> None:
    if layout.world == 1:
        return
    if any(isinstance(request, Generate) for request in requests):
        message, remedy = "one process writes an answer", "Leave --tp and --pp away, or take --method likelihood."
        raise ConfigError([Problem("--tp, --pp", message, remedy)])
    if devices.kind == "cuda" and layout.world > devices.count:
        message = f"{layout.world} processes for {devices.count} GPUs"
        raise ConfigError([Problem("--tp, --pp", message, "Their product is at most the number of GPUs.")])


def _ask(
    arguments: Sequence[str], requests: Sequence[Request], processes: int, layout: Layout, stack: ExitStack
) -> Iterator[Answer]:
    queue: SimpleQueue[Answer | BaseException | None] = SimpleQueue()
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="medsft-")))
    divided = layout.world > 1
    engines = _together(arguments, requests, layout, folder) if divided else _apart(arguments, requests, processes, folder)
    running = 0
    for engine in engines:
        stack.callback(engine.close)
        threading.Thread(target=_pass_on, args=(engine, queue), daemon=True, name="reads answers").start()
        running += 1
    while running:
        match queue.get():
            case None:
                running -= 1
            case BaseException() as error:
                raise error
            case found:
                yield found


def _apart(arguments: Sequence[str], requests: Sequence[Request], processes: int, folder: Path) -> Iterator[EngineLines]:
    """Start processes that have a model, and a part of the requests, each."""
    parts = _dealt(requests, processes)
    for number, part in enumerate(parts):
        path = _written(folder / f"{number}.jsonl", part)
        device = number if len(parts) > 1 else None
        yield EngineLines("answer", arguments, source=path, processes=len(parts), device=device)


def _together(arguments: Sequence[str], requests: Sequence[Request], layout: Layout, folder: Path) -> Iterator[EngineLines]:
    """Start the processes that have a model together, and all requests each."""
    path = _written(folder / "all.jsonl", requests)
    sizes = ["--tp", str(layout.tp), "--pp", str(layout.pp), "--store", str(folder / "store")]
    for rank in range(layout.world):
        own = [*arguments, *sizes, "--rank", str(rank)]
        yield EngineLines("score_sharded", own, source=path, processes=layout.world)


def _written(path: Path, requests: Sequence[Request]) -> Path:
    path.write_text("".join(json.dumps(to_json(request)) + "\n" for request in requests), encoding="utf-8")
    return path


def _pass_on(engine: EngineLines, queue: SimpleQueue[Answer | BaseException | None]) -> None:
    try:
        for line in engine.lines():
            queue.put(from_json(line))
    except BaseException as error:  # raised where the answers are read
        queue.put(error)
    else:
        queue.put(None)


def _dealt(requests: Sequence[Request], parts: int) -> list[list[Request]]:
    """Deal requests to processes: about as many tokens to each, those that begin alike to the same."""
    ordered = sorted(requests, key=lambda request: request.prefix if isinstance(request, Score) else request.prompt)
    sizes = [_size(request) for request in ordered]
    total, before = sum(sizes), 0
    dealt: list[list[Request]] = [[] for _ in range(parts)]
    for request, size in zip(ordered, sizes, strict=True):
        dealt[min(parts - 1, parts * before // total)].append(request)
        before += size
    return [part for part in dealt if part]


def _size(request: Request) -> int:
    if isinstance(request, Score):
        return len(request.prefix) + sum(map(len, request.continuations))
    return len(request.prompt) + request.max_new_tokens


def _digest(request: Request) -> str:
    return hashlib.sha256(json.dumps(to_json(request)).encode()).hexdigest()[:16]


class _KeptAnswers:
    """A file of answers: a line that says what was asked, then a line for each answer, with the hash of its request."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self._path, self._header = path, json.dumps(header)
        self._file: BinaryIO | None = None

    def __enter__(self) -> _KeptAnswers:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        there = self._path.read_bytes() if self._path.exists() else b""
        whole = there[: there.rfind(b"\n") + 1]  # without a line that a kill has torn
        header, *self._lines = whole.splitlines() or [b""]
        if header == self._header.encode():
            self._file = self._path.open("r+b")
            self._file.truncate(len(whole))
            self._file.seek(len(whole))
        else:
            self._lines = []
            self._file = self._path.open("wb")
            self._file.write(f"{self._header}\n".encode())
            self._file.flush()
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def answers(self, digests: Mapping[str, str]) -> dict[str, Answer]:
        """Return the answers to requests of these hashes, by the id of the request."""
        found = {}
        for line in self._lines:
            try:
                raw = json.loads(line)
                one = from_json(raw)
            except (ValueError, KeyError, TypeError):
                continue
            if digests.get(one.id) == raw.get("request"):
                found[one.id] = one
        return found

    def add(self, found: Answer, digest: str) -> None:
        """Write an answer so that it outlives this process."""
        assert self._file is not None
        self._file.write(json.dumps({**to_json(found), "request": digest}).encode() + b"\n")
        self._file.flush()
