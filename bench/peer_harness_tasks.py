"""Evaluates a model with lm-evaluation-harness on tasks of a folder. Runs in the harness's own environment.

    python peer_harness_tasks.py MODEL FOLDER bf16|fp32 OUT.json TASK...

OUT.json gets for each task its metrics, and for each question what the model answered: sums of log p, or a text.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def main() -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    model, folder, precision, out, *tasks = sys.argv[1:]
    done = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": model, "dtype": {"bf16": "bfloat16", "fp32": "float32"}[precision]},
        tasks=tasks,
        task_manager=TaskManager(include_path=folder, include_defaults=False),
        batch_size=8,
        device="cpu",
        log_samples=True,
        bootstrap_iters=0,
    )
    found: dict[str, Any] = {"version": lm_eval.__version__}
    for task in tasks:
        samples = sorted(done["samples"][task], key=lambda sample: sample["doc_id"])
        metrics = {name: value for name, value in done["results"][task].items() if isinstance(value, int | float)}
        found[task] = {"metrics": metrics, "answers": [_answer(sample["filtered_resps"]) for sample in samples]}
    Path(out).write_text(json.dumps(found), encoding="utf-8")


def _answer(responses: list[Any]) -> Any:
    """Return the sums of log p of a question's options, or the text that was written."""
    return responses[0] if isinstance(responses[0], str) else [float(total) for total, _ in responses]


if __name__ == "__main__":
    main()
