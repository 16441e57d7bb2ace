"""How the cost of a step grows with the length of documents, their number, the layers, and the ranks.

Lengths, documents and layers are measured in this process in CPU seconds of one thread, which other programs on the machine
hardly disturb; ranks by the clock, in runs.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench import documents
from bench.runs import Job, medsft_outcome, plan_of, train, unpack_base
from bench.table import Row, print_table, say
from medsft.core.engine.nn.attention import PackedSequences, attend
from medsft.core.engine.nn.loss import weighted_nll
from medsft.core.engine.nn.model import Decoder
from medsft.core.models.config import ModelConfig, read_hf_config

_LAYERS = 2
_REPEATS = 3
_RANK_LAYERS = 6
_ROWS = 200


@dataclass(frozen=True, slots=True)
class Series:
    """Seconds that something takes at several sizes."""

    name: str
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]

    @property
    def exponent(self) -> float:
        """Return e of the least-squares fit of log(seconds) = e * log(size) + c: 1 is linear."""
        return statistics.linear_regression([math.log(n) for n in self.sizes], [math.log(s) for s in self.seconds]).slope


def measure(work: Path) -> dict[str, Any]:
    """Print tables and return their figures."""
    base = unpack_base(work / "base")
    config = read_hf_config(base)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = [
        series("one document, tokens", (256, 512, 1024, 2048, 4096), lambda n: step(config, [n])),
        series("attention of one document, tokens", (256, 512, 1024, 2048, 4096), lambda n: attention(config, [n])),
        series("documents of 256 tokens", (1, 2, 4, 8, 16), lambda n: step(config, [256] * n)),
        series("attention of documents of 256 tokens", (1, 2, 4, 8, 16), lambda n: attention(config, [256] * n)),
        series("layers, 512 tokens", (1, 2, 4, 8), lambda n: step(config, [512], layers=n)),
    ]
    torch.set_num_threads(threads)
    print_table("Growth of forward and backward in bf16, CPU milliseconds of one thread", [_row(one) for one in found])
    return {
        "growth": [{"name": s.name, "sizes": s.sizes, "seconds": s.seconds, "exponent": s.exponent} for s in found],
        "ranks": ranks(base, work),
    }


def series(name: str, sizes: Sequence[int], prepare: Callable[[int], Callable[[], None]]) -> Series:
    """Measure at each size; the least of a few, after one to warm up."""
    return Series(name, tuple(sizes), tuple(_cpu_seconds(prepare(size)) for size in sizes))


def step(config: ModelConfig, lengths: list[int], *, layers: int = _LAYERS) -> Callable[[], None]:
    """Return forward and backward of a model with some of the layers, every fourth token having a loss."""
    decoder = Decoder(replace(config, num_layers=layers))
    # torch's own initial weights make such large logits that most of a softmax is denormal, which takes many times as long.
    decoder.init_weights(0)
    decoder.bfloat16()
    sequences, tokens = PackedSequences.of(lengths), torch.randint(config.vocab_size, (sum(lengths),))
    weights = (torch.arange(len(tokens)) % 4 == 0).float()

    def run() -> None:
        hidden = decoder(tokens, sequences)
        weighted_nll(hidden, decoder.head_weight(), tokens, weights, vocab_size=config.vocab_size).loss.backward()

    return run


def attention(config: ModelConfig, lengths: list[int]) -> Callable[[], None]:
    """Return forward and backward of attention alone."""
    sequences, total = PackedSequences.of(lengths), sum(lengths)
    heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
    q, k, v = (torch.randn(total, count, config.head_dim).bfloat16().requires_grad_() for count in heads)
    return lambda: attend(q, k, v, sequences).sum().backward()


def _cpu_seconds(run: Callable[[], None]) -> float:
    run()
    seconds = []
    for _ in range(_REPEATS):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return min(seconds)


def _row(one: Series) -> Row:
    pairs = zip(one.sizes, one.seconds, strict=True)
    return {
        "what grows": one.name,
        "size: ms": ", ".join(f"{size}: {seconds * 1e3:.0f}" for size, seconds in pairs),
        "exponent": f"{one.exponent:.2f}",
    }


LAYOUTS: dict[str, dict[str, int]] = {
    "1 process": {"nproc_per_node": 1},
    "dp 2": {"nproc_per_node": 2},
    "tp 3": {"nproc_per_node": 3, "tp": 3},
    "pp 2": {"nproc_per_node": 2, "pp": 2},
    "dp 3": {"nproc_per_node": 3},
    "dp 4": {"nproc_per_node": 4},
    "pp 2, dp 2": {"nproc_per_node": 4, "pp": 2},
}
"""The machine's threads are divided among the ranks, so beyond as many ranks as cores only the overhead grows."""


def ranks(base: Path, work: Path) -> dict[str, Any]:
    """Train a shorter model at several layouts, with the default global batch, and compare with one process on all threads."""
    job = Job(
        base=shorter(base, work / f"base-{_RANK_LAYERS}-layers"),
        rows=documents.write(work / "ranks.jsonl", _ROWS),
        global_batch=64,
        steps=3,
    )
    rates, rows = {}, []
    for name, layout in LAYOUTS.items():
        outcome = medsft_outcome(train(plan_of(job, work, **layout)))
        rates[name] = outcome.tokens_per_second
        say(f"  {name}: {outcome.tokens_per_second:.0f} tokens/s")
        rows.append(
            {
                "layout": name,
                "tokens/s": f"{outcome.tokens_per_second:.0f}",
                "of 1 process": f"{outcome.tokens_per_second / rates['1 process']:.2f}",
                "largest rank, GB": f"{outcome.memory_bytes / 1e9:.2f}",
            }
        )
    print_table(f"Ranks on this machine, {_RANK_LAYERS} layers in bf16, {torch.get_num_threads()} threads in all", rows)
    return rates


def shorter(base: Path, folder: Path) -> Path:
    """Return the base model with random weights and fewer layers, so that starting and saving take little of the time."""
    if folder.exists():
        return folder
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base, num_hidden_layers=_RANK_LAYERS)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    for file in base.glob("*"):
        if file.suffix in (".json", ".jinja") and not (folder / file.name).exists():
            shutil.copy(file, folder / file.name)
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert written["num_hidden_layers"] == _RANK_LAYERS
    return folder
