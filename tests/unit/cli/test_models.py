"""`medsft export`, `medsft convert` and `medsft merge`: what is wrong with a request is said before torch is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from adapters import write_peft
from typer.testing import CliRunner

from medsft.cli.app import app
from medsft.core.run.rundir import RunDir
from medsft.errors import ExitCode


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("export one --to taken", "taken: exists already."),
        ("export one --to new", "no checkpoint to export."),
        ("export one --to new --iteration 400", "no checkpoint of iteration 400 to export."),
        ("convert base taken --to hf", "taken: exists already."),
        ("convert base taken --to dcp", "taken: exists already."),
        ("convert base taken --to megatron", "taken/release: exists already."),
        ("convert base taken --to megatron --as_iteration 5", "taken/iter_0000005: exists already."),
        ("convert base new --to hf --optimizer", "--optimizer is for a run"),
        ("convert nowhere new --to hf", "nowhere: no such file or folder."),
        ("merge adapter --to taken", "taken: exists already."),
        ("merge base --to new", "no adapter_config.json there"),
        ("merge adapter --base nowhere --to new", "nowhere: no such file or folder."),
        ("merge adapter --base other --to new", "an adapter of another base than other"),
        ("convert adapter new --to hf", "medsft merge adapter --base BASE --to DIR"),
    ],
)
def test_what_cannot_begin_is_refused_at_once(
    command: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    RunDir(Path("runs/one-a")).create("{}")
    tiny.write_base(tmp_path / "base")
    tiny.write_base(tmp_path / "other", num_hidden_layers=2)
    write_peft(tmp_path / "adapter", tmp_path / "base")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "theirs").touch()
    for saved in ("release", "iter_0000005"):
        (tmp_path / "taken" / saved).mkdir()
        (tmp_path / "taken" / saved / "theirs").touch()
    monkeypatch.setattr("medsft.core.run.launch.run_engine", lambda *_: pytest.fail("torch would be loaded"))
    result = CliRunner(env={"TERM": "dumb"}).invoke(app, command.split())
    assert result.exit_code == ExitCode.MISMATCH, result.output
    assert message in result.output
