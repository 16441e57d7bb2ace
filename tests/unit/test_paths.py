"""A file for a folder, a folder for a file, a link to itself, a name too long: one message under its flag, exit code 2."""

from __future__ import annotations

import errno
import shlex
from pathlib import Path

import pytest
import tiny
from typer.testing import CliRunner

from medsft.cli.app import app
from medsft.core.config.run_config import from_mapping
from medsft.core.paths import check_folder, check_name_length
from medsft.core.planning.folders import check_places
from medsft.errors import ExitCode
from medsft.tui.wizard.form import parse

RUN = "--checkpoint tiny --size 0.001 --run_name words --data train.jsonl --nproc_per_node 1"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    tiny.write_base(Path("base"))
    tiny.write_rows(Path("train.jsonl"), 8)
    Path("medsft.toml").write_text('[checkpoints.tiny]\n0.001 = "base"\n')
    Path("file").touch()
    Path("folder").mkdir()
    Path("loop").symlink_to("loop")
    Path("utf16.toml").write_text("[training]\nlr = 1\n", encoding="utf-16")
    Path("deep.toml").write_text("a = " + "[" * 5000 + "]" * 5000)


def invoke(line: str) -> tuple[int, str]:
    result = CliRunner(env={"TERM": "dumb"}).invoke(app, shlex.split(line))
    return result.exit_code, result.stderr


@pytest.mark.parametrize(
    ("line", "words"),
    [
        *((f"plan --config {name}", f"--config: {name}") for name in ("folder", "loop", "none", "file/x")),
        ("plan --config utf16.toml", "--config: utf16.toml is not text in UTF-8"),
        ("plan --config deep.toml", "deep.toml: not valid TOML"),
        *((f"plan {RUN} --settings {name}", name) for name in ("folder", "loop", "none", "file/x", "deep.toml", "utf16.toml")),
        *((f"checkpoints list --settings {name}", name) for name in ("folder", "loop", "none")),
        *((f"checkpoints add n 0.00004 base --settings {name}", name) for name in ("folder", "loop", "file/x", "utf16.toml")),
        *((f"datasets add n 1 --settings {name}", name) for name in ("folder", "loop", "file/x")),
        *(
            (f"{command} {RUN} --tokenized_data_dir {name}", "--tokenized_data_dir: ")
            for command in ("tokenize", "inspect", "plan", "rehearse", "sft")
            for name in ("file", "loop", "file/x")
        ),
        *(
            (f"{command} {RUN} --save_checkpoint_dir {name}", "--save_checkpoint_dir: ")
            for command in ("tokenize", "plan", "rehearse", "sft", "sft --print_commands")
            for name in ("file", "loop", "file/x")
        ),
        *((f"runs --plain --save_checkpoint_dir {name}", "--save_checkpoint_dir: ") for name in ("file", "loop", "file/x")),
        *((f"watch x --save_checkpoint_dir {name}", "--save_checkpoint_dir: ") for name in ("file", "loop")),
        *((f"plan {RUN} --output {name}", f"--output: {name} cannot be written") for name in ("folder", "none/x", "file/x")),
        ("demo --dir file", "file"),
        ("checkpoints scan file", "DIR: file"),
        *((f"{c} {RUN} --id {'x' * 250}", "--id: makes names of files") for c in ("plan", "tokenize", "sft", "sft --slurm")),
        (f"tokenize --data train.jsonl --checkpoint tiny --size 0.001 --run_name {'x' * 250}", "--run_name: makes names"),
    ],
)
def test_each_is_one_message(line: str, words: str) -> None:
    code, text = invoke(line)
    assert code == ExitCode.USAGE, text
    assert words in text
    assert "a bug in medsft" not in text
    assert "Traceback" not in text


def test_a_settings_file_that_is_a_folder_is_not_passed_over(tmp_path: Path) -> None:
    Path("medsft.toml").unlink()
    Path("medsft.toml").mkdir()
    code, text = invoke(f"plan {RUN}")
    assert (code, "medsft.toml cannot be read: Is a directory" in text) == (ExitCode.USAGE, True)
    code, text = invoke("checkpoints add n 0.00004 base")
    assert (code, "medsft.toml cannot be read: Is a directory" in text) == (ExitCode.USAGE, True)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(30, "Read-only file system")])
def test_what_the_system_refuses(monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    """Root may read and write everything, so the refusals are made up."""

    def refuse(path: Path, *_: object, **__: object) -> str:
        raise type(error)(error.errno, error.strerror, str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_text", refuse)
        for line in ("plan --config run.toml", "checkpoints list", "checkpoints add n 0.00004 base"):
            code, text = invoke(line)
            assert (code, error.strerror in text) == (ExitCode.USAGE, True), text
    monkeypatch.setattr("medsft.core.settings.write_atomically", refuse)
    code, text = invoke("checkpoints add n 0.00004 base")
    says = "Permission denied: " if error.errno == errno.EACCES else "is read-only: "
    assert (code, says in text, "medsft.toml" in text) == (ExitCode.USAGE, True, True)


def test_a_settings_file_behind_a_link_is_relative_to_where_it_lies() -> None:
    Path("elsewhere").mkdir()
    Path("elsewhere/link.toml").symlink_to("../medsft.toml")
    code, text = invoke(f"plan {RUN} --settings elsewhere/link.toml")
    assert code == 0, text


def test_folders_that_can_be(tmp_path: Path) -> None:
    Path("link").symlink_to("folder")
    for path in (Path("folder"), Path("new/a/b"), Path("link"), Path("link/new"), tmp_path, Path("~/none-of-medsft/x")):
        assert check_folder("--x", path) == []
    Path("broken").symlink_to("nowhere")
    assert "link to nothing" in check_folder("--x", Path("broken/y"))[0].message
    assert "NUL" in check_folder("--x", Path("a\0b"))[0].message


@pytest.mark.parametrize("name", ["id", "run_name", "checkpoint"])
def test_the_longest_names_that_are_allowed_can_be_made(tmp_path: Path, name: str) -> None:
    lengths = [n for n in range(1, 256) if not check_places(from_mapping({"run_name": "r", "id": "i", name: "x" * n}))]
    assert lengths[-1] > 100
    assert lengths == list(range(1, lengths[-1] + 1))
    assert [p.where for p in check_places(from_mapping({"run_name": "r", "id": "i", name: "x" * 256}))] == [f"--{name}"]


def test_names_are_measured_in_bytes() -> None:
    assert check_name_length("--x", "x" * 255) == []
    assert check_name_length("--x", "é" * 128)[0].message == "makes names of files 1 bytes too long"


def test_the_wizard_knows_numbers_that_are_not_finite() -> None:
    _, problems = parse({"run_name": "x", "lr": "nan", "epochs": "inf", "size": "-inf"})
    assert sorted(problem.where for problem in problems) == ["--epochs", "--lr", "--size"]
