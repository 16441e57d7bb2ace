"""`python -m bench.row_files`: how fast rows are read and tokenized, by the kind of file that they stand in.

The same rows, with as many new words as PubMedQA's, as JSONL, JSON array, CSV, Parquet and packed with zstd; and as
conversations (`messages`) in JSONL and Parquet. Rates are megabytes of these rows' JSONL for each second of CPU time, of all
processes together, so that other work on the machine disturbs them little.
BENCH_DATASETS_PYTHON names a Python with `datasets` and `transformers`, which then tokenizes the conversations by
`Dataset.map`, row by row as TRL does, in as many processes.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

import medsft
from bench import documents
from bench.runs import unpack_base
from bench.table import print_table
from medsft.core.data.sources.base import all_rows
from medsft.core.data.sources.columns import Keys
from medsft.core.data.sources.open import open_rows
from medsft.core.data.sources.row_format import RowFormat

CORES = len(os.sched_getaffinity(0))
_TURNS = 3
_CONVERSATIONS = ("messages.jsonl", "messages.parquet")
_PEER = """
import sys
from datasets import load_dataset
from transformers import AutoTokenizer

rows, folder, cores = sys.argv[1], sys.argv[2], int(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(folder)
tokenizer.chat_template = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\\n{{ message.content }}<|im_end|>\\n{% endfor %}"
)
data = load_dataset("json", data_files=rows, split="train", cache_dir=sys.argv[4])
encode = lambda row: tokenizer.apply_chat_template(row["messages"], return_dict=True)
data.map(encode, num_proc=cores, load_from_cache_file=False)
"""


def write_files(folder: Path, count: int) -> dict[str, Path]:
    """Return each kind of file with the same rows, written unless it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = documents.write_varied(folder / "rows.jsonl", count)
    names = ("rows.json", "rows.csv", "rows.parquet", "rows.jsonl.zst", *_CONVERSATIONS)
    files = {"rows.jsonl": lines} | {name: folder / name for name in names}
    if all(path.exists() for path in files.values()):
        return files
    rows = [json.loads(line) for line in lines.open(encoding="utf-8")]
    files["rows.json"].write_text(json.dumps(rows, indent=1), encoding="utf-8")
    with files["rows.csv"].open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["prompt", "gold"])
        writer.writeheader()
        writer.writerows(rows)
    pa.parquet.write_table(pa.Table.from_pylist(rows), files["rows.parquet"])
    subprocess.run(["zstd", "-q", "-f", lines, "-o", files["rows.jsonl.zst"]], check=True)
    chats = [
        {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["gold"]}]}
        for row in rows
    ]
    files["messages.jsonl"].write_text("".join(json.dumps(row) + "\n" for row in chats), encoding="utf-8")
    pa.parquet.write_table(pa.Table.from_pylist(chats), files["messages.parquet"])
    return files


def measure(work: Path, count: int) -> dict[str, Any]:
    """Print and return the rates of each kind of file."""
    files, base = write_files(work / "row_files", count), unpack_base(work / "base")
    lines = {name: files["messages.jsonl" if name in _CONVERSATIONS else "rows.jsonl"] for name in files}
    reference = {name: path.stat().st_size / 1e6 for name, path in lines.items()}
    out = work / "row_files" / "sets"
    runs: dict[str, Callable[[], object]] = {
        name: partial(_tokenize, path, base, out / name / "set") for name, path in files.items()
    }
    if peer := os.environ.get("BENCH_DATASETS_PYTHON"):
        command = [peer, "-c", _PEER, str(files["messages.jsonl"]), str(base), str(CORES), str(out / "cache")]
        runs["datasets.map of messages.jsonl"] = partial(subprocess.run, command, check=True, capture_output=True)
        reference["datasets.map of messages.jsonl"] = reference["messages.jsonl"]
    read = {name: statistics.median(_cpu_seconds(partial(_read, path)) for _ in range(_TURNS)) for name, path in files.items()}
    turns = [{name: _cpu_seconds(run) for name, run in runs.items()} for _ in range(_TURNS)]
    shutil.rmtree(out)
    rates = {
        name: {
            "read": reference[name] / read[name] if name in read else None,
            "tokenize": statistics.median(reference[name] / turn[name] for turn in turns),
            "beside": statistics.median(turn[_beside(name)] / turn[name] for turn in turns),
        }
        for name in runs
    }
    print_table(
        f"{count} rows, MB of their JSONL for a CPU second; the ratio is beside the JSONL of the same rows in the same turn",
        [
            {"file": name, **{what: "" if rate is None else f"{rate:.2f}" for what, rate in rates[name].items()}}
            for name in rates
        ],
    )
    return rates


def _beside(name: str) -> str:
    return "messages.jsonl" if "messages" in name else "rows.jsonl"


def _tokenize(path: Path, base: Path, folder: Path) -> None:
    rows = RowFormat(name="messages", keys=Keys(messages="messages")) if path.name in _CONVERSATIONS else RowFormat()
    medsft.tokenize(medsft.TokenizeSpec(data=(path,), tokenizer=base, template="chatml", rows=rows), folder, retokenize=True)


def _read(path: Path) -> None:
    for _ in all_rows(open_rows(path)):
        pass


def _cpu_seconds(run: Callable[[], object]) -> float:
    before = os.times()
    run()
    after = os.times()
    return sum(after[:4]) - sum(before[:4])  # of this process and of those that it started and that have ended


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.row_files", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--rows", type=int, default=100_000, help="default 100,000")
    parser.add_argument("--work", type=Path, default=Path("bench/scratch"), help="folder for models and rows")
    options = parser.parse_args()
    measure(options.work, options.rows)


if __name__ == "__main__":
    main()
