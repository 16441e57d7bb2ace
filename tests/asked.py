"""Small tasks, and models that are only asked: a tokenizer of bytes, weights of zeros, and a function that answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tiny
import tiny_tokenizers

from medsft.core.evaluation.benchmark import Task
from medsft.core.evaluation.model import ModelSource
from medsft.core.evaluation.requests import Answer, Generated, Request, Score, Scored
from medsft.core.evaluation.tasks.read import read_task


def write_pubmedqa(path: Path, count: int, *, word: str = "zinc") -> Path:
    """Of four questions two are answered yes, one no, one maybe."""
    gold = ("yes", "no", "yes", "maybe")
    rows = [
        {
            "pubid": n,
            "question": f"Does {word} number {n} help those with illness {n} in the long run?",
            "context": {"contexts": [f"We gave {word} {n} to {n + 40} people for {n + 3} weeks.", "They got well."]},
            "final_decision": gold[n % 4],
        }
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_medqa(path: Path, count: int) -> Path:
    rows = [
        {
            "question": f"Case {n}: what now?",
            "options": {"A": f"Rest {n}", "B": f"Drug {n}", "C": "Wait"},
            "answer_idx": "ABC"[n % 3],
        }
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pubmedqa(folder: Path, count: int = 8) -> Task:
    return read_task("pubmedqa", write_pubmedqa(folder / "pubmedqa.jsonl", count))


def medqa(folder: Path, count: int = 6) -> Task:
    return read_task("medqa", write_medqa(folder / "medqa.jsonl", count))


def source(folder: Path, *, template: str = "chatml", name: str = "model", **changes: Any) -> ModelSource:
    """A model whose tokenizer spells bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny_tokenizers.write_qwen(folder)
    tiny.write_base(folder, tokenizer=False, vocab_size=512, max_position_embeddings=4096, **changes)
    ends = tuple(json.loads((folder / "tokenizer.json").read_text())["added_tokens"][n]["id"] for n in (0, 2))
    return ModelSource(name=name, weights=folder, tokens=512, tokenizer=folder, template=template, ends=ends, context=4096)


def answers_by(
    choose: Callable[[Request], int], write: Callable[[Request], Sequence[int]] = lambda _: ()
) -> Callable[[ModelSource, Sequence[Request], Path], Iterator[Answer]]:
    """A model whose most likely continuation is the one with this number, and which writes these tokens."""

    def answer(_: ModelSource, requests: Sequence[Request], __: Path) -> Iterator[Answer]:
        for request in requests:
            if isinstance(request, Score):
                best = choose(request)
                count = len(request.continuations)
                scores = tuple(-1.0 if place == best else -1000.0 for place in range(count))
                yield Scored(id=request.id, log_likelihoods=scores, num_tokens=(1,) * count, greedy=(False,) * count)
            else:
                yield Generated(id=request.id, ids=tuple(write(request)), ended="end")

    return answer
