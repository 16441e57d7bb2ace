"""What is wrong with a command line is said in one message, as every other error is."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from medsft.cli.app import app


@pytest.mark.parametrize(
    ("typed", "message", "hint"),
    [
        ("watch", "watch: Missing argument 'RUN'", "Usage: medsft watch"),
        ("watch a b", "watch: Got unexpected extra argument", "Usage: medsft watch"),
        ("sft train.jsonl", "sft: Got unexpected extra argument", "--data FILE"),
        ("export r --iteration x --to y", "export: Invalid value for '--iteration'", "Usage: medsft export"),
        ("checkpoints add a", "checkpoints add: Missing argument 'SIZE'", "Usage: medsft checkpoints add"),
        ("plan --retokenize yes", "plan: Got unexpected extra argument", "Usage: medsft plan"),
        ("resume r --lora-rank 4", "--lora_rank: `resume` has no such flag", "Another value is another run: medsft sft"),
        ("resume r --save_interval 4", "--save_interval: `resume` has no such flag", "Type the `medsft sft` command"),
        ("resume r --tpp 4", "--tpp: `resume` has no such flag", "Did you mean `--tp`?"),
        ("plan --seq", "command line: Option '--seq' requires an argument", ""),
    ],
)
def test_a_wrong_command_line_is_one_message_with_what_to_do(typed: str, message: str, hint: str) -> None:
    result = CliRunner(env={"TERM": "dumb"}).invoke(app, typed.split())
    assert result.exit_code == 2
    assert result.stderr.startswith(f"medsft: {message}")
    assert hint in result.stderr
    assert len(result.stderr.splitlines()) == (2 if hint else 1)


def test_a_group_without_a_command_still_shows_its_help() -> None:
    result = CliRunner(env={"TERM": "dumb"}).invoke(app, ["checkpoints"])
    assert "scan" in result.output
    assert "medsft: " not in result.stderr
