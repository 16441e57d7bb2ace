"""What an evaluation leaves: a file, an event of the run, and lines of the model card.

    RUN/eval/TASK-TIME.json     figures, hashes of file, model and prompt, and for each question its id and what was chosen
    MODEL/eval/TASK-TIME.json   the same beside a model that is no run's

Questions and answers are not written: both may be about a patient.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from medsft.core.data.dataset.spec import InputFile
from medsft.core.evaluation.asking import Asking
from medsft.core.evaluation.measure import Result
from medsft.core.evaluation.model import ModelSource
from medsft.core.files import write_atomically
from medsft.core.run.events import EventWriter
from medsft.core.run.rundir import RunDir

FOLDER = "eval"
_FORMAT = 1


def record(
    asking: Asking,
    results: Sequence[Result],
    source: ModelSource,
    *,
    data: Sequence[InputFile],
    fingerprint: str,
    model: str,
    precision: str,
) -> dict[str, Any]:
    """Return what is written of one model on one task.

    `data` are the task's files and `fingerprint` is the model's identity as they were when it was asked.
    """
    task, ask = asking.task, asking.ask
    return {
        "format": _FORMAT,
        "time": datetime.now().astimezone().isoformat(timespec="microseconds"),
        "task": task.name,
        "title": task.title,
        "source": task.source,
        "notes": list(task.notes),
        "data": [{"path": file.path, "bytes": file.bytes, "sha256": file.sha256} for file in data],
        "model": {
            "name": model,
            "weights": str(source.weights),
            "adapter": str(source.adapter) if source.adapter else None,
            "iteration": source.iteration,
            "fingerprint": fingerprint,
            "precision": precision,
        },
        "prompt": {
            "style": ask.style,
            "template": source.template if ask.style == "template" else None,
            "shots": ask.shots,
            "seed": ask.seed,
            "max_new_tokens": ask.max_new_tokens if "generate" in asking.methods else None,
            "sha256": asking.prompt_sha256(),
        },
        "results": [result.to_json() for result in results],
        "questions": list(_questions(asking, results)),
    }


def _questions(asking: Asking, results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    overlap = next((result.overlap.rows for result in results), None)
    for number, (question, reply) in enumerate(zip(asking.task.questions, asking.replies, strict=True)):
        line: dict[str, Any] = {"id": question.id}
        if question.options:
            line["gold"] = question.gold_label
            if reply.label is not None:
                line |= {"label": question.labels[reply.label], "log_likelihoods": [round(one, 5) for one in reply.scores]}
            if reply.text is not None:
                line["text"] = question.labels[reply.text]
            if len(reply.shifts) > 1:
                line["shifts"] = [question.labels[reply.shifts[shift]] for shift in sorted(reply.shifts)]
            if "generate" in asking.methods:
                line["generated"] = None if reply.generated is None else question.labels[reply.generated]
        else:
            line |= {"exact": reply.exact, "f1": round(reply.f1, 5)}
        if overlap is not None:
            line["overlap"] = bool(overlap[number])
        yield line


def write_record(folder: Path, content: Mapping[str, Any], *, suffix: str = "") -> Path:
    """Write a record into a folder of results, which need not exist, and return its path. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{content['task']}-{time.strftime('%Y%m%d-%H%M%S')}{suffix}"
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    number = 1
    while True:
        path = folder / (f"{stem}.json" if number == 1 else f"{stem}-{number}.json")
        try:
            write_atomically(path, text, replace=False)
            return path
        except FileExistsError:
            number += 1


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Return the records in a folder of results, the oldest first; files that are none are left out."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(raw, dict) and raw.get("format") == _FORMAT and isinstance(raw.get("results"), list):
            found.append(raw)
    return sorted(found, key=lambda one: str(one.get("time")))


def write_event(run: RunDir, results: Sequence[Result], file: Path, iteration: int | None) -> bool:
    """Append a `benchmark` event for each result to the log of a run; False where the run is alive, and writes it itself."""
    if run.alive():
        return False
    events = EventWriter(run.events_path)
    try:
        for result in results:
            events.write(
                "benchmark",
                task=result.task,
                method=result.method,
                iteration=iteration,
                questions=len(result.right),
                accuracy=result.accuracy.value,
                interval=list(result.accuracy.interval),
                file=str(file),
            )
    finally:
        events.close()
    return True
