"""Names of other tools' options lead to ours, slips of the keyboard too, and each name that is given exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from medsft.cli.app import app
from medsft.cli.argv import unknown_flags
from medsft.core import other_tools
from medsft.core.config.options import field_types
from medsft.core.config.run_config import RunConfig
from medsft.core.other_tools import suggestion
from medsft.errors import ExitCode

ELSEWHERE = {
    "learning_rate": "lr",
    "batch_size": "global_batch",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "micro_batch",
    "max_seq_length": "seq",
    "max_length": "seq",
    "output_dir": "save_checkpoint_dir",
    "model_name_or_path": "checkpoint",
    "adapter_name_or_path": "checkpoint",
    "dataset": "data",
    "train_file": "data",
    "eval_steps": "eval_interval",
    "save_total_limit": "keep_last",
    "gradient_checkpointing": "recompute",
    "tensor_model_parallel_size": "tp",
    "nnodes": "nodes",
    "warmup_ratio": "warmup_fraction",
    "val_set_size": "val",
    "group_by": "group_key",
    "dataset_type": "format",
    "formatting": "format",
    "field_messages": "messages_key",
    "dataset_text_field": "text_key",
    "roles": "role_map",
    "lora_r": "lora_rank",
    "target_modules": "lora_targets",
    "use_rslora": "rslora",
    "quantization": "base_precision",
    "merge_and_unload": "export",
}


@pytest.mark.parametrize(("theirs", "ours"), ELSEWHERE.items())
def test_flags_of_other_tools(theirs: str, ours: str) -> None:
    assert suggestion(theirs, field_types(RunConfig), mark="--") == f"Did you mean `--{ours}`?"
    assert suggestion(theirs.replace("_", "-").upper(), field_types(RunConfig)) == f"Did you mean `{ours}`?"


@pytest.mark.parametrize(
    ("typed", "meant"), [("epoch", "epochs"), ("sez", "seq"), ("globalbatch", "global_batch"), ("losmask", "loss_mask")]
)
def test_slips_of_the_keyboard(typed: str, meant: str) -> None:
    assert suggestion(typed, field_types(RunConfig)) == f"Did you mean `{meant}`?"


def test_where_a_name_does_not_help_a_sentence_does() -> None:
    assert "medsft resume" in suggestion("resume_from_checkpoint", field_types(RunConfig))
    assert "--adapter lora --base_precision nf4" in suggestion("load_in_4bit", field_types(RunConfig))
    assert "--adapter lora" in suggestion("use-peft", field_types(RunConfig))
    assert suggestion("xyzzy_plugh", field_types(RunConfig)) == ""


def test_every_name_and_flag_in_the_tables_is_ours() -> None:
    command = get_command(app)
    flags = {o.removeprefix("--") for c in command.commands.values() for p in c.params for o in p.opts}  # type: ignore[attr-defined]
    assert set(other_tools._OURS) <= flags
    assert not {name for names in other_tools._OURS.values() for name in names.split()} & set(field_types(RunConfig))
    for sentence in other_tools._SENTENCES.values():
        assert set(re.findall(r"--(\w+)", sentence)) - {"adam_"} <= set(field_types(RunConfig)), sentence


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner(env={"TERM": "dumb"}).invoke(app, list(arguments))
    return result.exit_code, result.stderr


def test_a_misspelled_command_is_named_with_the_one_that_was_meant() -> None:
    code, text = invoke("wacth", "triage")
    assert code == ExitCode.USAGE
    assert "wacth: `medsft` has no such command\n    Did you mean `watch`?" in text
    assert "`checkpoints` has no such command\n    Did you mean `list`?" in invoke("checkpoints", "lst")[1]
    assert "`medsft --help` lists the commands." in invoke("qqqq")[1]


def test_all_unknown_flags_are_named_at_once() -> None:
    code, text = invoke(
        "sft", "--learning-rate", "1e-4", "--seq", "8", "--output_dir=x", "--nonsense_of_mine", "--question_key", "--odd"
    )
    assert code == ExitCode.USAGE
    assert "--learning_rate: `sft` has no such flag\n    Did you mean `--lr`?" in text
    assert "--output_dir: `sft` has no such flag\n    Did you mean `--save_checkpoint_dir`?" in text
    assert "--nonsense_of_mine" in text
    assert "--odd" not in text, "it is the value of a flag"


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("export", "r", "--output_dir", "x"), "--to"),
        (("checkpoints", "add", "--famly", "x"), "--family"),
        (("--verion",), "--version"),
    ],
)
def test_each_command_offers_its_own(words: tuple[str, ...], meant: str) -> None:
    code, text = invoke(*words)
    assert code == ExitCode.USAGE
    assert f"Did you mean `{meant}`?" in text


def test_what_follows_two_dashes_is_no_flag() -> None:
    known = {"--a": True, "--b": False}
    assert unknown_flags(["--a", "--x", "--b", "--c", "--", "--d"], known) == ["--c"]
    assert unknown_flags(["--a=1", "--c=2", "--c"], known) == ["--c"]


def test_toml_keys_of_other_tools(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[training]\nlearning_rate = 1e-4\n")
    code, text = invoke("plan", "--config", str(file))
    assert code == ExitCode.USAGE
    assert "learning_rate: there is no such option\n    Did you mean `lr`?" in text
