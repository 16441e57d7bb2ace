"""`medsft eval` as a person types it, with a function in the place of the engine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_tokenizers
from asked import answers_by, write_medqa, write_pubmedqa
from typer.testing import CliRunner, Result

from medsft.cli.app import app
from medsft.core.evaluation import requests as engine
from medsft.core.evaluation.model import ModelSource
from medsft.core.evaluation.requests import Answer, Request


def invoke(*arguments: object) -> Result:
    return CliRunner(env={"TERM": "dumb"}).invoke(app, ["eval", *map(str, arguments)])


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two models, of which one finds the first option most likely, the other the second."""
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        tiny_tokenizers.write_qwen(folder)
        tiny.write_base(folder, tokenizer=False, vocab_size=512, max_position_embeddings=4096)
    write_pubmedqa(tmp_path / "pubmedqa.jsonl", 8)
    write_medqa(tmp_path / "medqa.jsonl", 6)

    def ask(arguments: Sequence[str], requests: Sequence[Request], *rest: Any) -> Iterator[Answer]:
        model = ModelSource.from_json(json.loads(arguments[1]))
        yield from answers_by(lambda _: int(model.weights.name == "second"))(model, requests, tmp_path)

    monkeypatch.setattr(engine, "_ask", ask)
    return tmp_path


def test_json_is_the_contract(models: Path) -> None:
    tasks = ("--task", "pubmedqa", "--task", "medqa", "--data", models / "pubmedqa.jsonl", models / "medqa.jsonl")
    done = invoke(models / "first", models / "second", *tasks, "--json", "--shifts", "all")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [(one["model"], one["task"], one["n"]) for one in found["results"]] == [
        ("first", "pubmedqa", 8),
        ("first", "medqa", 6),
        ("second", "pubmedqa", 8),
        ("second", "medqa", 6),
    ]
    assert [one["accuracy"] for one in found["results"]] == pytest.approx([0.5, 1 / 3, 0.25, 1 / 3])
    assert [(one["a"], one["b"], one["difference"], one["gained"], one["lost"]) for one in found["pairs"]] == [
        ("first", "second", pytest.approx(-0.25), 2, 4),
        ("first", "second", pytest.approx(0.0), 2, 2),
    ]
    assert all(Path(file).is_file() for file in found["files"])


def test_the_report(models: Path) -> None:
    done = invoke(models / "first", models / "second", "--task", "pubmedqa", "--data", models / "pubmedqa.jsonl", "--limit", 6)
    assert done.exit_code == 0, done.output
    for said in (
        "always the same",
        "no certain difference",
        "reliability",
        "No training set is known",
        "MIT license",
        "6 of 8",
    ):
        assert said in done.output
    assert "zinc" not in done.output


def test_rows_of_ones_own_with_keys_of_ones_own(models: Path) -> None:
    rows = ({"Fall": f"case {n}?", "Lsg": "BA"[n % 2], "Wahl": {"A": "zinc", "B": "iron"}} for n in range(6))
    (models / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = ("--question_key", "Fall", "--answer_key", "Lsg", "--options_key", "Wahl")
    done = invoke(models / "first", "--task", models / "mine.jsonl", *keys, "--score", "label", "--json")
    assert done.exit_code == 0, done.output
    [found] = json.loads(done.stdout)["results"]
    assert (found["n"], found["accuracy"]) == (6, 0.5)
    refused = invoke(models / "first", "--task", models / "mine.jsonl")
    assert refused.exit_code == 3
    assert "--question_key, --answer_key and --options_key" in " ".join(refused.output.split())


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "no task is named"),
        (("--task", "nonsense"), 2, "no task and no file"),
        (("--task", "pubmedqa"), 2, "0 given for 1"),
        (("--task", "medqa", "--data", "pubmedqa.jsonl"), 3, "no rows of MedQA"),
        (("--task", "medqa", "--data", "medqa.jsonl", "--shots", "6"), 2, "--shots"),
        (("--task", "medqa", "--data", "medqa.jsonl", "--with", "base"), 2, "--with base"),
        (("--task", "medqa", "--data", "medqa.jsonl", "--method", "guess"), 2, "guess"),
        (("--task", "medqa", "--data", "medqa.jsonl", "--answer_key", "x"), 2, "--answer_key"),
        (("--task", "medqa.jsonl", "--question_key", "nowhere"), 3, "no key 'nowhere'"),
        (("--task", "medqa.jsonl", "--options_key", "opa,,opc"), 2, "a key is empty"),
    ],
)
def test_what_cannot_be_asked(models: Path, arguments: tuple[str, ...], code: int, said: str) -> None:
    done = invoke(models / "first", *arguments)
    assert done.exit_code == code, done.output
    assert said in done.output
