"""Results in the model card: the `model-index` of its front matter, which model hubs read.

See https://github.com/huggingface/hub-docs/blob/main/modelcard.md. JSON is YAML, so strings are written as JSON writes them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medsft.core.files import sealed, write_atomically
from medsft.core.run.integrity import EXPORT_MANIFEST, hash_file, read_export

CARD = "README.md"
_FRONT_MATTER = re.compile(r"\A---\n(.*?)^---$\n?", re.DOTALL | re.MULTILINE)
_MODEL_INDEX = re.compile(r"^model-index:\n(?:[ -].*\n)*", re.MULTILINE)


def with_results(card: str, name: str, records: Sequence[Mapping[str, Any]]) -> str:
    """Return a model card whose front matter has the results of these records, the latest of each task and method."""
    front = _FRONT_MATTER.match(card)
    latest = _latest(records)
    if front is None or not latest:
        return card
    kept = _MODEL_INDEX.sub("", front[1])
    lines = ["model-index:", f"- name: {json.dumps(name)}", "  results:"]
    for record, result in latest:
        lines += _result(record, result)
    return f"---\n{kept}" + "\n".join(lines) + f"\n---\n{card[front.end() :]}"


def _latest(records: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Return the latest results of each task and method; of the same files a sample does not replace more questions."""
    chosen: dict[tuple[Any, ...], tuple[Mapping[str, Any], Mapping[str, Any]]] = {}
    for record in records:
        for result in record["results"]:
            key = record["task"], result["method"], record["prompt"]["style"], record["prompt"]["shots"]
            before, more = chosen.get(key, (record, result))
            if _hashes(before) != _hashes(record) or result["n"] >= more["n"]:
                chosen[key] = record, result
    return list(chosen.values())


def _hashes(record: Mapping[str, Any]) -> list[str]:
    return [file["sha256"] for file in record["data"]]


def _result(record: Mapping[str, Any], result: Mapping[str, Any]) -> list[str]:
    style, shots = record["prompt"]["style"], record["prompt"]["shots"]
    low, high = result["interval"]
    how = (
        f"{result['method']}, {'its own template' if style == 'template' else 'prompt of lm-evaluation-harness'}, {shots} shots"
    )
    questions = f"{result['n']} questions, 95 % interval {low:.4f} to {high:.4f}"
    metrics = [("accuracy", result["accuracy"], f"accuracy ({how}; {questions})")]
    if result.get("macro_f1") is not None:
        metrics.append(("f1", result["macro_f1"], "macro F1"))
    lines = [
        "  - task:",
        "      type: question-answering",
        "    dataset:",
        f"      name: {json.dumps(record['title'])}",
        f"      type: {json.dumps(record['task'])}",
        "    metrics:",
    ]
    for kind, value, name in metrics:
        lines += [f"    - type: {kind}", f"      value: {value:.4f}", f"      name: {json.dumps(name)}"]
    return lines


def update_card(folder: Path, records: Sequence[Mapping[str, Any]]) -> bool:
    """Write results into the card of a model that medsft has exported, and its new hash into the manifest.

    Returns False for a model of somebody else, whose card is theirs. Raises OSError.
    """
    path, manifest_path = folder / CARD, folder / EXPORT_MANIFEST
    try:
        manifest = read_export(folder)
        card = path.read_text(encoding="utf-8")
    except (FileNotFoundError, ValueError):
        return False
    files = manifest.get("files")
    if not isinstance(files, dict) or files.get(CARD, hash_file(path)) != hash_file(path):  # somebody has written into it
        return False
    changed = with_results(card, folder.name, records)
    if changed == card:
        return False
    # First without a hash of the card, so that a kill in between leaves no model that seems damaged.
    rest = {name: file for name, file in files.items() if name != CARD}
    write_atomically(manifest_path, sealed({**manifest, "files": rest}))
    write_atomically(path, changed)
    write_atomically(manifest_path, sealed({**manifest, "files": {**rest, CARD: hash_file(path)}}))
    return True
