"""`medsft eval` with the engine itself: the likelihoods of options, and what is written, are those of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_tokenizers
import torch
from asked import write_medqa, write_pubmedqa
from typer.testing import CliRunner, Result

from medsft.cli.app import app
from medsft.core.engine.commands.export import export_run
from medsft.core.run.integrity import export_damage
from medsft.core.run.rundir import RunDir


def invoke(*arguments: object) -> Result:
    return CliRunner(env={"TERM": "dumb"}).invoke(app, ["eval", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.write_model(tmp_path_factory.mktemp("models") / "tiny", vocab_size=512, max_position_embeddings=2048)
    tiny_tokenizers.write_qwen(folder)
    return folder


def log_likelihood(model: Any, tokenizer: Any, text: str, continuation: str) -> float:
    """As lm-evaluation-harness computes it, with transformers."""
    ids = tokenizer(text + continuation, add_special_tokens=False)["input_ids"]
    first = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return float(sum(logits[place - 1, ids[place]] for place in range(first, len(ids))))


def test_likelihoods_and_answers_are_those_of_transformers(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    monkeypatch.chdir(tmp_path)
    write_medqa(tmp_path / "medqa.jsonl", 3)
    write_pubmedqa(tmp_path / "pubmedqa.jsonl", 3)
    tasks = ("--task", "medqa", "--task", "pubmedqa", "--data", tmp_path / "medqa.jsonl", tmp_path / "pubmedqa.jsonl")
    how = ("--prompt", "lm-eval", "--method", "both", "--shots", 1, "--precision", "fp32", "--max_new_tokens", 4)
    done = invoke(folder, *tasks, *how, "--json")
    assert done.exit_code == 0, done.output
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    medqa, pubmedqa = (json.loads(Path(file).read_text()) for file in json.loads(done.stdout)["files"])
    rows = [json.loads(line) for line in (tmp_path / "pubmedqa.jsonl").read_text().splitlines()]

    def text(row: dict[str, Any]) -> str:
        return f"Abstract: {chr(10).join(row['context']['contexts'])}\nQuestion: {row['question']}\nAnswer:"

    for row, found in zip(rows, pubmedqa["questions"], strict=True):
        solved = {f"{text(other)} {other['final_decision']}\n\n" for other in rows if other != row}
        scores = [
            [log_likelihood(model, tokenizer, example + text(row), f" {label}") for label in ("yes", "no", "maybe")]
            for example in solved
        ]
        assert any(found["log_likelihoods"] == pytest.approx(expected, abs=1e-3) for expected in scores)
    assert [result["method"] for result in medqa["results"]] == ["likelihood", "generate"]
    assert medqa["results"][0]["by_text"]["n"] == 3
    assert {"generated", "label", "text"} <= medqa["questions"][0].keys()
    assert medqa["results"][1]["invalid"] == 1.0  # random weights say nothing


def test_a_run_is_compared_with_its_base(tmp_path: Path, monkeypatch: Any) -> None:
    """The run learns to say yes. Its own event and files are written, and its training set is looked at."""
    monkeypatch.chdir(tmp_path)
    config, settings = tiny.project(tmp_path)
    rows = [json.loads(line) for line in write_pubmedqa(tmp_path / "benchmark.jsonl", 8, word="w5").read_text().splitlines()]
    with (tmp_path / "train.jsonl").open("a") as file:
        for row in rows[:4]:
            question = "\n".join((*row["context"]["contexts"], row["question"]))
            file.write(json.dumps({"prompt": question, "gold": row["final_decision"]}) + "\n")
    plan = tiny.plan_of(config, settings, iters=2, eval_interval=2)
    tiny.train(plan)
    done = invoke(plan.run_dir, "--task", "pubmedqa", "--data", tmp_path / "benchmark.jsonl", "--with", "base", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [(one["model"], one["n"], one["overlap"]) for one in found["results"]] == [
        ("base", 8, 0.5),
        (Path(plan.run_dir).name, 8, 0.5),
    ]
    assert found["pairs"][0]["a"] == "base"
    files = [Path(file) for file in found["files"]]
    assert {file.parent for file in files} == {Path(plan.run_dir) / "eval"}
    log = (Path(plan.run_dir) / "events.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["kind"] == "benchmark"
    to = tmp_path / "later"
    export_run(RunDir(Path(plan.run_dir)), to)
    card = (to / "README.md").read_text()
    assert f"value: {found['results'][1]['accuracy']:.4f}" in card
    assert export_damage(to) is None
