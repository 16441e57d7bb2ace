"""`medsft check`: what it finds of planted faults and reports wrongly, and its time and memory at many rows."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import documents
from bench.planted import made_rows, plant
from bench.table import say

_EACH = 20
_ROWS = 1_000_000


def measure(work: Path, *, data: Path | None, rows: int = _ROWS) -> dict[str, Any]:
    """Return figures of planted faults in `data` (prompt, gold; made rows without), and of `rows` made rows."""
    source = list(made_rows(600)) if data is None else _read(data)
    figures: dict[str, Any] = {"planted": _planted(source), "as they are": _as_they_are(source), "many rows": _many(work, rows)}
    for name, found in figures["planted"].items():
        say(f"{name:28} planted {found['planted']:3}  found {found['found']:3}  wrong {found['wrong']:3}")
    say(f"the rows as they are: {figures['as they are']}")
    say(f"{rows:,} rows: {figures['many rows']}")
    return figures


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return [{key: row[key] for key in ("prompt", "gold")} for row in map(json.loads, file)]


def _check(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "medsft", "check", *map(str, arguments), "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _planted(source: Sequence[dict[str, str]]) -> dict[str, dict[str, int]]:
    with tempfile.TemporaryDirectory() as folder:
        planted = plant(source, each=_EACH)
        rows, val, benchmark = planted.write(Path(folder))
        report = _check(rows, "--val", val, "--against", benchmark)
    figures = {}
    for kind, found in report["found"].items():
        lines = {int(place["row"].rsplit(":", 1)[1]) for place in found["places"]}
        wanted, also = planted.faults[kind], planted.side_effects.get(kind, set())
        figures[kind] = {"planted": len(wanted), "found": len(wanted & lines), "wrong": len(lines - wanted - also)}
    return figures


def _as_they_are(source: Sequence[dict[str, str]]) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in source), encoding="utf-8")
        report = _check(path)
    return {kind: found["rows"] for kind, found in report["found"].items() if found["rows"]}


def _many(work: Path, rows: int) -> dict[str, float]:
    """Seconds of the whole command, and the peak resident memory of its largest process (workers and parent alike)."""
    path, val = documents.write(work / f"check_{rows}.jsonl", rows), documents.write(work / "check_val.jsonl", 10_000, seed=1)
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    report = _check(path, "--val", val)
    seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "MB of rows": round(path.stat().st_size / 1e6),
        "seconds": round(seconds, 1),
        "rows a second": round(rows / seconds),
        "seconds of processors": round(processor, 1),
        "peak of the largest process, MiB": round(after.ru_maxrss / 1024),
        "near repeats": report["found"]["near_repeated"]["rows"],
        "in --val": report["found"]["in_val"]["rows"],
    }
