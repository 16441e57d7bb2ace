"""Everything around the training step: tokenizing, planning, starting, saving, and how soon a person sees something."""

from __future__ import annotations

import importlib.util
import shutil
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import medsft
from bench import documents, peer_tokenizing, screens, starting
from bench.runs import CHECKPOINT, SIZE, unpack_base
from bench.table import print_table, say
from medsft.core.data.dataset.dataset import role_prefix, text_prefix
from medsft.core.data.dataset.indexed import IndexedWriter
from medsft.core.data.tokenizers.template import Role
from medsft.core.planning.order import SampleOrder

_TOKENIZED_ROWS = 100_000
_MILLION = 1_000_000


def measure(work: Path) -> dict[str, Any]:
    """Print a table and return its figures."""
    base = unpack_base(work / "base")
    figures = screens.measure(work)
    figures |= million(base, work)
    figures |= tokenizing(base, work)
    figures |= starting.measure(base, work)
    print_table("Around the step", [{"what": name, "value": f"{value:.3g}"} for name, value in figures.items()])
    return figures


def tokenizing(base: Path, work: Path) -> dict[str, float]:
    """Rates per core with all cores at work, in turns with what the same texts take otherwise; megabytes are the JSONL's."""
    rows = documents.write_varied(work / f"varied-{_TOKENIZED_ROWS}.jsonl", _TOKENIZED_ROWS)
    figures = _rates("Hugging Face tokenizer", rows, base, work, {"tokenizers alone": peer_tokenizing.tokenizers(base)})
    model = sentence_piece()
    if model is None:
        say("SentencePiece: no model found (mistral-common ships one); not measured.")
    else:
        peers = {
            "sentencepiece alone": peer_tokenizing.sentence_piece(model),
            "the original's way": peer_tokenizing.original(model, work / "original"),
        }
        figures |= _rates("SentencePiece", rows, model, work, peers)
    shutil.rmtree(work / "tokenizing")
    return figures


def _rates(name: str, rows: Path, tokenizer: Path, work: Path, peers: Mapping[str, Callable[[Path], None]]) -> dict[str, float]:
    """Three turns, each program once in each; medians."""
    spec = medsft.TokenizeSpec(data=(rows,), tokenizer=tokenizer)
    folder = work / "tokenizing" / "rows"
    runs: dict[str, Callable[[], object]] = {"": lambda: medsft.tokenize(spec, folder, retokenize=True)}
    runs |= {peer: partial(run, rows) for peer, run in peers.items()}
    turns = [{run: _seconds(runs[run]) for run in runs} for _ in range(3)]
    ours = statistics.median(turn[""] for turn in turns) * peer_tokenizing.CORES
    figures = {f"{name}, documents/s a core": _TOKENIZED_ROWS / ours, f"{name}, MB/s a core": rows.stat().st_size / ours / 1e6}
    for peer in peers:
        figures[f"{name}, times {peer}"] = statistics.median(turn[peer] / turn[""] for turn in turns)
    return figures


def sentence_piece() -> Path | None:
    """Return a real tokenizer.model, if a package that has one is installed."""
    spec = importlib.util.find_spec("mistral_common")
    folders = spec.submodule_search_locations if spec else None
    source = Path(folders[0]) / "data" / "tokenizer.model.v1" if folders else None
    return source if source is not None and source.exists() else None


def million(base: Path, work: Path) -> dict[str, float]:
    """Plan and sample a set of a million documents."""
    folder = work / "tokenized" / "million"
    settings_file = work / "medsft.toml"
    settings_file.write_text(f'[checkpoints.{CHECKPOINT}]\n{SIZE} = "{base.resolve()}"\n', encoding="utf-8")
    if not folder.exists():
        _write_million(folder)
    config = medsft.RunConfig(
        checkpoint=CHECKPOINT,
        size=SIZE,
        run_name="million",
        tokenized_data_dir=folder.parent,
        save_checkpoint_dir=work / "runs",
        template="model",
        trust_cache=True,
        seq=512,
    )
    settings = medsft.load_settings(settings_file)
    medsft.tokenize_sets(config, settings)
    order = SampleOrder(_MILLION, 64, seed=0)
    return {
        "plan for 1,000,000 documents, s": _seconds(lambda: medsft.plan(config, settings)),
        "first batch of an epoch of 1,000,000, s": _seconds(lambda: order.batch(0)),
        "any other batch, s": _seconds(lambda: order.batch(1)),
    }


def _write_million(folder: Path) -> None:
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    sizes = draw.integers(20, 60, _MILLION, dtype=np.int32)
    roles = np.full(int(sizes.sum()), Role.QUESTION, np.uint16)
    ends = np.cumsum(sizes)
    for back in range(1, 9):
        roles[ends - back] = Role.ANSWER
    tokens = draw.integers(0, 1000, len(roles)).astype(np.uint16)
    for prefix, numbers in ((text_prefix(folder), tokens), (role_prefix(folder), roles)):
        with IndexedWriter(prefix, np.uint16) as writer:
            writer.add(numbers, sizes)
            writer.close()


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
