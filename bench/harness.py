"""`python -m bench.harness [MODEL]`: the figures of `medsft eval --prompt lm-eval` beside those of lm-evaluation-harness.

    labels     yes, no or maybe after an abstract, by the likelihood of the label
    texts      four options, by the likelihood of their texts, a byte
    written    an answer in words: equal to the right one, which for every second question is what the harness has written

MODEL is any folder that both read. Without one, SmolLM2-135M is trained on rows (`--data`, with `prompt` and `gold`; else
generated ones) and exported, so that what is compared is a model of medsft's own making. $BENCH_LM_EVAL_PYTHON names a Python
that has the harness. The questions mean nothing: what counts is that both find the same.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import medsft
from bench import documents
from bench.answers import harness_python
from bench.runs import Job, plan_of, unpack_base
from bench.table import print_table, say

_TOLERATED = 1e-3
_LONGEST_ANSWER = 16
_BATCH = 2
_TASKS = {
    "labels": """
doc_to_text: "Abstract: {{CONTEXTS | join('\\n')}}\\nQuestion: {{QUESTION}}\\nAnswer:"
doc_to_choice: ["yes", "no", "maybe"]
doc_to_target: final_decision
output_type: multiple_choice
metric_list: [{metric: acc}]
""",
    "texts": """
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{[options.A, options.B, options.C, options.D]}}"
doc_to_target: "{{['A', 'B', 'C', 'D'].index(answer_idx)}}"
output_type: multiple_choice
metric_list: [{metric: acc_bytes}]
""",
    "written": f"""
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: answer
output_type: generate_until
generation_kwargs: {{until: ["\\n"], max_gen_toks: {_LONGEST_ANSWER}, do_sample: false}}
metric_list: [{{metric: exact_match, ignore_case: true, ignore_punctuation: true}}]
""",
}
"""The harness's settings of each task."""


def questions(count: int) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each task, from a fixed seed; options are of uneven length, and not all of ASCII."""
    draw = random.Random(5)
    texts = [row["prompt"] for row in documents.rows(3 * count, seed=7)]
    endings = ("", " (à jeun)", " Größe", " 5 µg/ml", " ≥ 3")

    def option(number: int) -> str:
        return f"{' '.join(texts[2 * count + number].split()[: draw.randint(1, 6)])}{draw.choice(endings)}"

    labels = [
        {
            "QUESTION": f"{texts[count + n][:90]}?",
            "CONTEXTS": [texts[n][:400], texts[n][400:900]],
            "final_decision": draw.choice(("yes", "no", "maybe")),
        }
        for n in range(count)
    ]
    lettered = [
        {
            "question": texts[n][:300],
            "options": {letter: option((n + place) % count) for place, letter in enumerate("ABCD")},
            "answer_idx": draw.choice("ABCD"),
        }
        for n in range(count)
    ]
    written = [{"question": f"{texts[n][:120]}?", "answer": "nothing of that kind"} for n in range(count)]
    return {"labels": labels, "texts": lettered, "written": written}


def write_tasks(folder: Path, rows: dict[str, list[dict[str, Any]]]) -> None:
    """Write the rows of each task, and what the harness needs to read them."""
    for name, of_task in rows.items():
        file = (folder / f"{name}.jsonl").resolve()
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in of_task), encoding="utf-8")
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {json.dumps(str(file))}}}}}\n"
        (folder / f"{name}.yaml").write_text(f"{head}test_split: test\n{_TASKS[name].lstrip()}", encoding="utf-8")


def by_harness(python: Path, model: Path, folder: Path, precision: str, tasks: Sequence[str]) -> dict[str, Any]:
    """Return what `peer_harness_tasks.py` writes. Raises RuntimeError with the end of what it said when it fails."""
    out = folder / "harness.json"
    script = Path(__file__).with_name("peer_harness_tasks.py")
    environment = {**os.environ, "HF_HOME": str((folder / "hf").resolve())}  # it caches the rows that it reads
    command = [str(python), str(script), str(model), str(folder), precision, str(out), *tasks]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"lm-evaluation-harness ended with {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def by_medsft(model: Path, folder: Path, precision: str) -> dict[str, Any]:
    """Return the record of each task that `medsft eval` writes."""
    named = ("--task", "pubmedqa", "--task", "medqa", "--data", str(folder / "labels.jsonl"), str(folder / "texts.jsonl"))
    own = ("--task", str(folder / "written.jsonl"), "--max_new_tokens", str(_LONGEST_ANSWER))
    command = [sys.executable, "-m", "medsft", "eval", str(model), *named, *own, "--prompt", "lm-eval"]
    done = subprocess.run([*command, "--precision", precision, "--json"], capture_output=True, text=True, check=True)
    files = json.loads(done.stdout)["files"]
    return dict(zip(("labels", "texts", "written"), (json.loads(Path(file).read_text()) for file in files), strict=True))


def compare(python: Path, model: Path, folder: Path, *, count: int, precision: str) -> dict[str, float]:
    """Print the figures of both, and return by how much each differs."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = questions(count)
    write_tasks(folder, rows)
    say("lm-evaluation-harness answers")
    first = by_harness(python, model, folder, precision, ["written"])
    for n, answer in enumerate(first["written"]["answers"]):
        if n % 2 == 0 and answer.strip():
            rows["written"][n]["answer"] = answer  # with its first space, which the harness does not take away
    write_tasks(folder, rows)
    theirs = by_harness(python, model, folder, precision, list(rows))
    say("medsft answers")
    ours = by_medsft(model, folder, precision)
    apart = [
        abs(one - other)
        for question, answers in zip(ours["labels"]["questions"], theirs["labels"]["answers"], strict=True)
        for one, other in zip(question["log_likelihoods"], answers, strict=True)
    ]
    figures = {
        "labels: accuracy": (ours["labels"]["results"][0]["accuracy"], theirs["labels"]["metrics"]["acc,none"]),
        "texts, a byte: accuracy": (
            ours["texts"]["results"][0]["by_text"]["accuracy"],
            theirs["texts"]["metrics"]["acc_bytes,none"],
        ),
        "written: exact match": (ours["written"]["results"][0]["accuracy"], theirs["written"]["metrics"]["exact_match,none"]),
    }
    table = [
        {
            "figure": name,
            "medsft": f"{one:.4f}",
            "lm-evaluation-harness": f"{other:.4f}",
            "difference": f"{abs(one - other):.1e}",
        }
        for name, (one, other) in figures.items()
    ]
    largest = f"{max(apart):.1e}"
    table.append(
        {"figure": "labels: log p, the largest difference", "medsft": "", "lm-evaluation-harness": "", "difference": largest}
    )
    print_table(f"{count} questions of each, {precision}, beside lm-evaluation-harness {theirs['version']}", table)
    return {**{name: abs(one - other) for name, (one, other) in figures.items()}, "log p": max(apart)}


def trained(work: Path, base: Path, rows: Path, *, iterations: int, adapter: str) -> Path:
    """Train a base model on rows and return the folder of the finished model. Raises RuntimeError when the run fails."""
    job = Job(base=base, rows=rows, precision="fp32", steps=iterations, micro_batch=_BATCH, global_batch=_BATCH)
    rates = {"lr": 5e-4, "min_lr": 5e-5} if adapter == "lora" else {"lr": 1e-4, "min_lr": 1e-5}
    plan = plan_of(job, work, adapter=adapter, id=f"{adapter}-{iterations}", **rates)
    folder = medsft.start(plan)
    list(medsft.follow(folder))
    if folder.view().outcome != "finished":
        raise RuntimeError(f"the run failed; its logs are in {folder.logs}")
    return Path(plan.export_dir)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.harness")
    parser.add_argument("model", nargs="?", type=Path, help="a folder with a model; without one, a model is trained")
    parser.add_argument("--base", type=Path, metavar="DIR", help="the base model that is trained (default SmolLM2-135M)")
    parser.add_argument("--data", type=Path, metavar="FILE.jsonl", help="rows to train on (prompt, gold)")
    parser.add_argument("--iters", type=int, default=40)
    parser.add_argument("--adapter", choices=("none", "lora"), default="none", help="what is trained")
    parser.add_argument("--questions", type=int, default=24, help="of each kind")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--work", type=Path, default=Path("bench/scratch/harness"), help="folder for models and tasks (2 GB)")
    options = parser.parse_args()
    python = harness_python()
    if python is None:
        sys.exit("$BENCH_LM_EVAL_PYTHON names no Python that has lm-evaluation-harness.")
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    rows = options.data or documents.write(work / "rows.jsonl", 40)
    model = options.model
    if model is None:
        base = options.base or unpack_base(work / "base")
        model = trained(work, base, rows, iterations=options.iters, adapter=options.adapter)
    found = compare(python, model, work / "tasks", count=options.questions, precision=options.precision)
    if options.precision == "fp32" and max(found.values()) > _TOLERATED:
        sys.exit(f"They differ by more than {_TOLERATED}.")


if __name__ == "__main__":
    main()
