"""Training side by side: medsft and its peers take turns on the same base model and rows, several times, in one run."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import medsft
from bench import documents, flops, machine, peers
from bench.plot import write_bars
from bench.runs import Job, Outcome, medsft_outcome, plan_of, train, unpack_base
from bench.table import Row, print_table, say, spread
from medsft.core.data.tokenizers.template import Role
from medsft.core.models.config import read_hf_config

_ROWS = 400


def measure(work: Path, *, rows: Path | None, repeats: int, steps: int, precisions: tuple[str, ...]) -> dict[str, Any]:
    """Print and return rates, ratios and shares. Every figure of a comparison comes from this one run."""
    job = Job(base=unpack_base(work / "base"), rows=rows or documents.write(work / "pubmedqa_like.jsonl", _ROWS), steps=steps)
    python = peers.trl_python()
    if python is None:
        say("TRL is not installed: `make bench-peers` builds its environment. Measuring medsft alone.")
    results: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    limits: dict[str, list[float]] = defaultdict(list)
    machines = []
    for turn in range(repeats):
        for precision in precisions:
            now = replace(job, precision=precision)
            found = machine.measure()
            machines.append(found)
            rate = found.rate(precision) / 1e9
            say(f"turn {turn + 1}/{repeats}, {precision}: products {rate:.0f} GFLOP/s, load {found.load:.1f}")
            results["medsft", precision].append(medsft_outcome(train(plan_of(now, work))))
            say(f"  medsft {results['medsft', precision][-1].tokens_per_second:.0f} tokens/s")
            limits[precision].append(found.rate(precision) / flops_per_token(job, work))
            if python is not None:
                results["trl", precision].append(peers.train_trl(python, now))
                say(f"  TRL    {results['trl', precision][-1].tokens_per_second:.0f} tokens/s")
    _print(results, limits)
    return {
        "job": {key: str(value) for key, value in asdict(job).items()},
        "machine": [asdict(found) for found in machines],
        "limit_tokens_per_second": dict(limits),
        "outcomes": {" ".join(key): [asdict(one) for one in found] for key, found in results.items()},
    }


def plot(found: dict[str, Any], path: Path) -> None:
    """Draw what `measure` returned."""
    rates = {key: [one["tokens_per_second"] for one in outcomes] for key, outcomes in found["outcomes"].items()}
    write_bars(path, "Training, tokens/s", {(key.split()[0], key.split()[1]): values for key, values in rates.items()})


def flops_per_token(job: Job, work: Path) -> float:
    """Return the arithmetic per token of the set that medsft has just trained on."""
    data = medsft.open_tokenized(work / "tokenized" / job.rows.stem)
    lengths = [min(int(n) - 1, job.seq) for n in data.lengths]
    answers = [int((data.roles(i)[1 : job.seq + 1] == Role.ANSWER).sum()) for i in range(data.num_documents)]
    return flops.per_token(read_hf_config(job.base), lengths, answers)


def _print(results: dict[tuple[str, str], list[Outcome]], limits: dict[str, list[float]]) -> None:
    rows: list[Row] = []
    for (program, precision), found in results.items():
        rates = [one.tokens_per_second for one in found]
        share = [rate / limit for rate, limit in zip(rates, limits[precision], strict=True)]
        peer = results.get(("trl", precision))
        speed = [one / other.tokens_per_second for one, other in zip(rates, peer, strict=True)] if peer else None
        memory = [one.memory_bytes for one in found]
        memory_ratio = [one / other.memory_bytes for one, other in zip(memory, peer, strict=True)] if peer else None
        rows.append(
            {
                "program": program,
                "precision": precision,
                "tokens/s": spread(rates, ".0f"),
                "times TRL": spread(speed, ".2f"),
                "peak GB": spread([one / 1e9 for one in memory], ".2f"),
                "of TRL's": spread(memory_ratio, ".2f"),
                "of the products' rate": spread(share, ".2f"),
            }
        )
    print_table("Training", rows)
    for precision, rates in limits.items():
        say(f"limit in {precision}: {statistics.median(rates):.0f} tokens/s if nothing but matrix products took time")
