"""Answers, token by token, of many sequences at once: one that ends leaves, and one that waits takes its place.

    step: [all tokens of prompts that enter | the last token of each sequence that runs] --decoder--> a next token for each

There is no padding: a step is one stream of tokens. Keys and values lie in pages of a memory of fixed size; a sequence that
enters takes the pages that it may need at most, so none leaves before its end. What all prompts begin with is computed once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from medsft.core.engine.infer.scoring import common
from medsft.core.engine.nn.key_ranges import KeyRanges, Range, attend_ranges
from medsft.core.engine.nn.model import Decoder
from medsft.core.evaluation.requests import Generate, Generated, not_finite

PAGE = 32
"""Tokens of a page."""
_LEAST_SHARED = 32
"""Tokens that a beginning must have to be computed apart."""
_ROOM_FOR_BYTES = 8
"""So many tokens more than a stop string has bytes are looked at for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much is computed and held at once."""

    sequences: int
    """That run at the same time."""
    prompt_tokens: int
    """Of sequences that enter in one step; a longer prompt enters alone."""
    cache_tokens: int
    """Keys and values that are held; as many as the longest sequence needs in any case."""


class Pages:
    """Memory for the keys and values of all layers, in pages."""

    def __init__(self, decoder: Decoder, count: int) -> None:
        config, weight = decoder.config, decoder.head_weight()
        shape = (count * PAGE, config.num_kv_heads, config.head_dim)
        layers = range(len(decoder.model.layers))
        self.keys = [torch.empty(shape, dtype=weight.dtype, device=weight.device) for _ in layers]
        self.values = [torch.empty(shape, dtype=weight.dtype, device=weight.device) for _ in layers]
        self.free = list(range(count - 1, -1, -1))

    def take(self, count: int) -> list[int]:
        """Return so many pages, neighbors where there are."""
        taken = self.free[len(self.free) - count :]
        del self.free[len(self.free) - count :]
        return taken[::-1]

    def give_back(self, pages: Sequence[int]) -> None:
        """Let others have these pages."""
        self.free += reversed(pages)


@dataclass(slots=True, eq=False)
class _Running:
    """A sequence between its prompt and its end."""

    request: Generate
    pages: list[int]
    held: int
    """Its tokens of which keys and values are in its pages."""
    before: tuple[Range, ...] = ()
    """Rows of keys that its own go on from."""
    new: list[int] = field(default_factory=list)
    draw: torch.Generator | None = None

    @property
    def skipped(self) -> int:
        """Tokens of its text whose keys and values are in rows of others."""
        return sum(end - start for start, end in self.before)

    def pending(self) -> Sequence[int]:
        """Return the tokens whose keys and values are not there yet."""
        return self.new[-1:] if self.new else self.request.prompt[self.skipped + self.held :]

    def rows(self, start: int, end: int) -> list[int]:
        """Return the rows of its own tokens from number `start` up to `end`."""
        return [self.pages[i // PAGE] * PAGE + i % PAGE for i in range(start, end)]

    def ranges(self) -> tuple[Range, ...]:
        """Return the rows of all keys that it sees, with those of its first `held` tokens."""
        found = list(self.before)
        for number, page in enumerate(self.pages):
            length = min(PAGE, self.held - number * PAGE)
            if length <= 0:
                break
            start = page * PAGE
            if found and found[-1][1] == start:
                found[-1] = found[-1][0], start + length
            else:
                found.append((start, start + length))
        return tuple(found)


class Generator:
    """Answers requests with one model. `decode` turns ids into text, where requests have stop strings."""

    def __init__(self, decoder: Decoder, limits: Limits, *, decode: Callable[[Sequence[int]], str] | None = None) -> None:
        self._decoder, self._limits, self._decode = decoder, limits, decode
        self._device = decoder.head_weight().device
        self._kept: _Running | None = None
        self._pages: Pages | None = None

    @torch.inference_mode()
    def generate(self, requests: Sequence[Generate]) -> Iterator[Generated]:
        """Yield the answer to each request, in any order. Raises ValueError for an empty prompt."""
        if not all(request.prompt for request in requests):
            raise ValueError("a prompt has at least one token")
        shared = _shared(requests)
        waiting = deque(sorted(requests, key=lambda request: -(len(request.prompt) + request.max_new_tokens)))
        if not waiting:
            return
        need = max(_pages_for(request, shared) for request in waiting) + -(-shared // PAGE)
        every = sum(_pages_for(request, shared) for request in waiting) + -(-shared // PAGE)
        self._pages = Pages(self._decoder, max(need, min(every, self._limits.cache_tokens // PAGE)))
        before: tuple[Range, ...] = ()
        if shared:
            beginning = Generate(id="", prompt=waiting[0].prompt[:shared], max_new_tokens=0)
            root = _Running(beginning, self._pages.take(-(-shared // PAGE)), 0)
            self._step([root])
            before = root.ranges()
        running: list[_Running] = []
        while waiting or running:
            self._admit(waiting, running, before, shared)
            for sequence, token in zip(list(running), self._step(running), strict=True):
                ended = self._take(sequence, token)
                if ended:
                    running.remove(sequence)
                    self._pages.give_back(sequence.pages)
                    yield Generated(id=sequence.request.id, ids=tuple(sequence.new), ended=ended)

    @torch.inference_mode()
    def stream(self, request: Generate) -> Iterator[int | Generated]:
        """Yield each new token of one answer, then the answer. What the sequence before it began with is not computed again."""
        sequence = self._go_on(request)
        while True:
            ended = self._take(sequence, *self._step([sequence]))
            if ended != "end" and sequence.new:
                yield sequence.new[-1]
            if ended:
                self._kept = sequence
                yield Generated(id=request.id, ids=tuple(sequence.new), ended=ended)
                return

    def _go_on(self, request: Generate) -> _Running:
        """Return the sequence of a request in the pages of the one before it, or in larger ones."""
        need = _pages_for(request, 0)
        if self._kept is None or len(self._kept.pages) < need:
            # Twice as many, so that a few turns of a conversation go by before the next are needed.
            self._pages = Pages(self._decoder, 2 * need)
            return _Running(request, self._pages.take(2 * need), 0, draw=_drawing(request))
        kept = self._kept
        there = (*kept.request.prompt, *kept.new)[: kept.held]
        return _Running(request, kept.pages, common(there, request.prompt[:-1]), draw=_drawing(request))

    def _admit(self, waiting: deque[Generate], running: list[_Running], before: tuple[Range, ...], shared: int) -> None:
        assert self._pages is not None
        room = self._limits.prompt_tokens
        while waiting and len(running) < self._limits.sequences:
            request = waiting[0]
            need, tokens = _pages_for(request, shared), len(request.prompt) - shared
            if need > len(self._pages.free) or (tokens > room and room < self._limits.prompt_tokens):
                return
            waiting.popleft()
            room -= tokens
            running.append(_Running(request, self._pages.take(need), 0, before, draw=_drawing(request)))

    def _step(self, running: Sequence[_Running]) -> list[int]:
        """Compute the pending tokens of all sequences and return the next token of each. Raises MismatchError for NaN."""
        assert self._pages is not None
        tokens: list[int] = []
        positions: list[int] = []
        rows: list[int] = []
        lengths: list[int] = []
        for sequence in running:
            pending = sequence.pending()
            start, end, skipped = sequence.held, sequence.held + len(pending), sequence.skipped
            tokens += pending
            positions += range(skipped + start, skipped + end)
            rows += sequence.rows(start, end)
            lengths.append(len(pending))
            sequence.held = end
        where = KeyRanges.of(lengths, [sequence.ranges() for sequence in running], self._device)
        position_ids, into = (torch.tensor(values, device=self._device) for values in (positions, rows))
        sequences = _InPages(position_ids, where, into, self._pages)
        hidden = self._decoder(torch.tensor(tokens, device=self._device), sequences)
        logits = self._decoder.logits(hidden.index_select(0, where.queries[1:].long() - 1)).float()
        likeliest = logits.argmax(-1)  # of a row with NaN, a place where it is
        if not bool(logits.gather(-1, likeliest[:, None]).isfinite().all()):
            raise not_finite("the model")
        best: list[int] = likeliest.tolist()
        return [
            best[i] if sequence.draw is None else _drawn(logits[i], sequence.request, sequence.draw)
            for i, sequence in enumerate(running)
        ]

    def _take(self, sequence: _Running, token: int) -> Literal["end", "stop", "length"] | None:
        """Take a new token and return by what the answer ends, None where it goes on."""
        request, new = sequence.request, sequence.new
        if token in request.ends:
            return "end"
        if request.max_new_tokens > 0:
            new.append(token)
        if request.stop_strings and self._decode is not None:
            longest = max(len(stop.encode()) for stop in request.stop_strings)
            text = self._decode(new[-longest - _ROOM_FOR_BYTES :])
            if any(stop in text for stop in request.stop_strings):
                return "stop"
        return "length" if len(new) >= request.max_new_tokens else None


class _InPages:
    """Tokens whose keys and values go into pages, and that see what lies there."""

    def __init__(self, position_ids: Tensor, where: KeyRanges, rows: Tensor, pages: Pages) -> None:
        self.position_ids = position_ids
        self._where, self._rows, self._pages = where, rows, pages
        self._layer = 0

    def attend(self, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        """See `Sequences.attend`."""
        keys, values = self._pages.keys[self._layer], self._pages.values[self._layer]
        self._layer += 1
        keys.index_copy_(0, self._rows, k)
        values.index_copy_(0, self._rows, v)
        return attend_ranges(q, keys, values, self._where, window)


def _shared(requests: Sequence[Generate]) -> int:
    """Return how many tokens all prompts begin with alike, where that is worth while; each has at least one more."""
    if len(requests) < 2:
        return 0
    first, last = min(request.prompt for request in requests), max(request.prompt for request in requests)
    shared = min(common(first, last), min(len(request.prompt) for request in requests) - 1)
    return shared if shared >= _LEAST_SHARED else 0


def _pages_for(request: Generate, shared: int) -> int:
    return -(-(len(request.prompt) - shared + request.max_new_tokens) // PAGE)


def _drawing(request: Generate) -> torch.Generator | None:
    return torch.Generator().manual_seed(request.seed) if request.temperature > 0 else None


def _drawn(logits: Tensor, request: Generate, generator: torch.Generator) -> int:
    """Draw from the most likely tokens that have `top_p` together (Holtzman et al. 2020), on the CPU: so anywhere the same."""
    p, order = (logits.double().cpu() / request.temperature).softmax(-1).sort(descending=True)
    kept = p.cumsum(-1) - p < request.top_p
    return int(order[int(torch.multinomial(p * kept, 1, generator=generator))])
