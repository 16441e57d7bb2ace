"""What `medsft tokenize` and `medsft inspect` say of rows that can be used but may not be what a person meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
from kept import ROW_CASES
from typer.testing import CliRunner

from medsft.cli.app import app

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
    assert [record["warnings"] for record in records] == [[f"--data: {UNUSED}"], [f"--val: {UNUSED}", REPEATED]]
