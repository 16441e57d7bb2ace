"""What `medsft tokenize` and `medsft inspect` say of rows that can be used but may not be what a person meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
from kept import ROW_CASES
from role_sets import write_conversations
from typer.testing import CliRunner

from medsft.cli.app import app
from medsft.core.data.dataset.subset import Reading, as_read
from medsft.core.data.tokenizers.open import open_tokenizer

ALPACA = ROW_CASES / "d03_alpaca.jsonl"
UNUSED = "the text under these keys is not used: `input` (in 2 of 3 rows)."
REPEATED = "--val: 3 of 3 rows are in --data too: the validation loss will look too good."


@pytest.mark.parametrize("command", [["tokenize"], ["inspect", "--samples", "0"]])
def test_unused_text_and_rows_of_both_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write_tokenizer(tmp_path)
    flags = ["--tokenizer", ".", "--run_name", "x", "--question_key", "instruction", "--answer_key", "output"]
    arguments = [*command, *flags, "--data", str(ALPACA), "--val", str(ALPACA)]
    said = CliRunner().invoke(app, arguments)
    assert said.exit_code == 0
    for expected in (f"warning: --data: {UNUSED}", f"warning: --val: {UNUSED}", f"warning: {REPEATED}"):
        assert expected in said.stderr
    text = CliRunner().invoke(app, [*arguments, "--json"]).stdout
    decoder, records = json.JSONDecoder(), []
    while text.strip():
        record, end = decoder.raw_decode(text.lstrip())
        records += record if isinstance(record, list) else [record]
        text = text.lstrip()[end:]
    assert [record["unused_text"] for record in records] == [{"input": 2}] * 2
    warnings = [[line for line in record["warnings"] if "unknown token" not in line] for record in records]
    assert warnings == [[f"--data: {UNUSED}"], [f"--val: {UNUSED}", REPEATED]]
    assert [len(record["warnings"]) - len(kept) for record, kept in zip(records, warnings, strict=True)] == [1, 1]


def test_inspect_shows_each_turn_and_token_with_its_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a set with texts and conversations of several turns, as `--seq`, `--truncate` and `--turns` have it read."""
    monkeypatch.chdir(tmp_path)
    tiny.write_tokenizer(tmp_path)
    opened = open_tokenizer(tmp_path)
    assert opened.stop_id is not None
    folder = tmp_path / "tokenized" / "x"
    data = write_conversations(folder, documents=10, stop_id=opened.stop_id, vocab_size=opened.tokenizer.vocab_size)
    flags = [
        "--tokenizer",
        ".",
        "--run_name",
        "x",
        "--seq",
        "20",
        "--truncate",
        "keep",
        "--turns",
        "last",
        "--loss_mask",
        "0.5",
    ]
    arguments = ["inspect", *flags, "--trust_cache", "--samples", "10"]
    said = CliRunner().invoke(app, arguments)
    assert said.exit_code == 0, said.stderr
    words = " ".join(said.stdout.split())
    for expected in (
        "turn 2, answer,",
        "weight 0.5",
        "cut away",
        "text, 21 tokens, weight 1",
        "answers that would be lost whole",
    ):
        assert expected in words
    for row in ("turns of conversations", "cut with --truncate keep from turn", "texts, in pieces of --seq", "(--turns last)"):
        assert row in words
    each = CliRunner().invoke(app, [*arguments, "--tokens"])
    assert each.exit_code == 0
    assert len([line for line in each.stdout.splitlines() if line.endswith('"')]) > data.lengths.sum()  # pieces share a token
    [record] = json.loads(CliRunner().invoke(app, [*arguments, "--tokens", "--json"]).stdout)
    read = as_read(data.outlines, Reading(seq=20, truncate="keep", turns="last", loss_mask=0.5))
    assert len(record["samples"]) == len(read)
    assert record["trained"] == read.answer_labels.sum()
    for position, sample in enumerate(record["samples"]):
        document = int(read.indices[position])
        tokens = [token for part in sample["parts"] if not part.get("cut") for token in part["each"]]
        trained = read.trained(position, data.roles(document))
        assert [token["weight"] for token in tokens] == [0.0, *(1.0 if label else 0.5 for label in trained)]
        assert [token["id"] for token in tokens] == data.tokens(document)[read.span(position)].tolist()
        assert (sample["document"], sample["start"]) == (document, read.starts[position])


def test_how_rows_are_read_is_said_and_stays_what_the_set_was_made_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write_tokenizer(tmp_path)
    flags = ["--tokenizer", ".", "--run_name", "x"]
    chat = ["--data", str(ROW_CASES / "d05_sharegpt.jsonl")]
    told = "Rows are read as sharegpt: messages `conversations` (`conversations` is a list of turns of ShareGPT)."
    assert told in CliRunner().invoke(app, ["tokenize", *flags, *chat]).stderr
    by_hand = CliRunner().invoke(app, ["tokenize", *flags, *chat, "--format", "sharegpt", "--role_map", "human=user", "--json"])
    assert by_hand.exit_code == 0  # the same was decided
    assert json.loads(by_hand.stdout)["rows"] == {"format": "sharegpt", "keys": {"messages": "conversations"}}
    assert "Rows are read as sharegpt: messages `conversations`." in CliRunner().invoke(app, ["tokenize", *flags]).stderr
    other = CliRunner().invoke(app, ["tokenize", *flags, *chat, "--format", "messages", "--messages_key", "conversations"])
    assert (other.exit_code, "--format was sharegpt, now messages" in other.stderr) == (3, True)
    mixed = CliRunner().invoke(app, ["tokenize", *flags[:2], "--run_name", "y", *chat, str(ALPACA), "--val", str(ALPACA)])
    assert mixed.exit_code == 0
    assert f"Rows of {chat[1]} are read as sharegpt: messages `conversations` (" in mixed.stderr
    assert f"Rows of {ALPACA} are read as alpaca: " in mixed.stderr
    again = CliRunner().invoke(app, ["inspect", *flags[:2], "--run_name", "y", "--json", "--samples", "0"])
    train, val = json.loads(again.stdout)
    assert [(one["file"], one["format"]) for one in train["rows"]] == [(chat[1], "sharegpt"), (str(ALPACA), "alpaca")]
    assert val["rows"]["format"] == "alpaca"
    unused = CliRunner().invoke(app, ["tokenize", *flags[:2], "--run_name", "y", "--format", "text"])
    assert (unused.exit_code, "--format was sharegpt, now text" in unused.stderr) == (3, True)
    wrong = CliRunner().invoke(app, ["tokenize", *flags, *chat, "--format", "qa", "--messages_key", "conversations"])
    assert (wrong.exit_code, "has no meaning with --format qa" in wrong.stderr) == (2, True)


@pytest.mark.parametrize("command", ["plan", "tokenize", "check"])
def test_a_data_file_that_lies_beside_the_toml_alone_is_pointed_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Paths of a run's TOML are relative to the working folder; people may take them for relative to the file."""
    tiny.plannable(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir(exist_ok=True)
    tiny.write_rows(tmp_path / "runs" / "rows.jsonl", 4)
    toml = tmp_path / "runs" / "run.toml"
    toml.write_text('[base]\ncheckpoint = "tiny"\nsize = 0.001\n[data]\nrun_name = "new"\ndata = ["rows.jsonl"]\n')
    said = CliRunner().invoke(app, [command, "--config", "runs/run.toml"])
    assert said.exit_code == 3
    assert said.stderr.startswith("medsft: rows.jsonl: cannot be read")
    assert "write runs/rows.jsonl, or start in runs." in said.stderr
    (tmp_path / "runs" / "rows.jsonl").unlink()
    said = CliRunner().invoke(app, [command, "--config", "runs/run.toml"])
    assert said.exit_code == 3
    assert "beside" not in said.stderr
