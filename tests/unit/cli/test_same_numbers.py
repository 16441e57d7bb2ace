"""Documents, tokens and longest document of a set are the same wherever they are shown."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tiny
from typer.testing import CliRunner

from medsft.cli.app import app
from medsft.core.data.dataset.dataset import open_tokenized
from medsft.core.engine.commands.model_card import model_card
from medsft.core.planning.plan import RunPlan
from medsft.core.planning.planner import make_plan
from medsft.core.planning.sets import training_folder, validation_folder
from medsft.core.run.rundir import RunDir
from medsft.core.run.view import RunView
from medsft.core.units import count, short_count
from medsft.tui.wizard.backend import look_ahead

OLD_RUNS = Path(__file__).parents[2] / "old" / "0.1.0" / "runs"


def called(command: str, *arguments: str) -> str:
    result = CliRunner(env={"TERM": "dumb"}).invoke(app, [command, *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_every_place_has_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, settings = tiny.project(tmp_path)
    monkeypatch.chdir(tmp_path)
    flags = ["--checkpoint", "tiny", "--size", "0.001", "--run_name", "words", "--data", "train.jsonl", "--val", "val.jsonl"]
    flags += ["--tokenized_data_dir", str(config.tokenized_data_dir), "--save_checkpoint_dir", str(config.save_checkpoint_dir)]
    tokenized = json.loads("[" + re.sub(r"^}\n{", "},{", called("tokenize", *flags, "--json"), flags=re.MULTILINE) + "]")
    inspected = json.loads(called("inspect", *flags, "--json"))
    planned = json.loads(called("plan", *flags, "--json"))
    for folder, printed, inspection, plan in zip(
        (training_folder(config), validation_folder(config)),
        tokenized, inspected, (planned["train"], planned["val"]), strict=True,
    ):  # fmt: skip
        data = open_tokenized(folder)
        assert printed["documents"] == inspection["documents"] == plan["documents"] == data.num_documents
        assert printed["tokens"] == inspection["tokens"] == plan["tokens"] == data.lengths.sum()
        assert inspection["longest"] == plan["longest"] == data.lengths.max()
        assert inspection["tokens_by_role"]["answer"] == plan["supervised_tokens"]
        assert plan["labels"] == plan["tokens"] - plan["documents"]
    train = inspected[0]
    card = model_card(make_plan(config, settings), RunView(), 0)
    assert f"| Training set | {train['documents']:,} documents, {train['tokens']:,} tokens," in card
    assert f"| Longest document | {train['longest']:,} tokens |" in card
    outlook = look_ahead(config, tmp_path / "medsft.toml", samples=False)
    assert outlook.plan is not None
    assert outlook.report is not None
    assert outlook.exact
    assert (outlook.report.tokens, outlook.report.longest) == (train["tokens"], train["longest"])
    assert (outlook.plan.train.tokens, outlook.plan.train.longest) == (train["tokens"], train["longest"])
    table = called("plan", *flags)
    [row] = re.findall(r"training set(.*?)\n", table)
    assert f"{count(train['documents'])} documents, {short_count(train['tokens'])} tokens" in row
    assert f"the longest has {count(train['longest'])} tokens" in row


def test_a_plan_of_the_first_version_gives_them_too() -> None:
    """It counted labels, one less for each document, under the name of tokens."""
    [folder] = (path.parent for path in OLD_RUNS.glob("*/plan.json"))
    plan = RunPlan.read(RunDir(folder).plan_path)
    sets = OLD_RUNS.parent / "tokenized"
    assert plan.val is not None
    for stats, name in ((plan.train, "words"), (plan.val, "words-val")):
        data = open_tokenized(sets / name)
        assert (stats.tokens, stats.longest) == (data.num_tokens, data.lengths.max())
        assert stats.labels == data.num_tokens - data.num_documents
        assert stats.supervised_tokens == data.answers.num_tokens
    assert RunPlan.from_json(json.loads(plan.to_json())) == plan
