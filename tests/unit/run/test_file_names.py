"""The names of a run's files are spelled in one place, and old spellings of what is in them are read."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

import medsft
from medsft.core.run.rundir import RankError, RunDir
from medsft.errors import ExitCode, Failure

PACKAGE = Path(medsft.__file__).parent
KNOW_THEM = {"core/run/rundir.py", "core/models/run_folder.py"}
NAMES = re.compile(
    r"plan\.json|events\.jsonl|\.status\.txt|launch\.json|process(_node_.*)?\.json|(error_rank|end_node|part)_.*|heartbeat"
    r"|(start|writer)\.lock|(launcher|supervisor|export).*\.log|.*\.rehearsal\.json|\.iter_.*|.*\.saving.*|logs"
)


def spelled(path: Path) -> set[str]:
    """The strings of a module that are no sentences: docstrings and messages may speak of a file."""
    strings = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
    return {part for text in strings if isinstance(text, str) and " " not in text for part in text.split("/")}


def test_only_the_run_folder_knows_its_file_names() -> None:
    found = {
        (module, name)
        for path in PACKAGE.rglob("*.py")
        if (module := str(path.relative_to(PACKAGE))) not in KNOW_THEM
        for name in spelled(path)
        if NAMES.fullmatch(name)
    }
    assert found == set()
    assert any(NAMES.fullmatch(name) for name in spelled(PACKAGE / "core/run/rundir.py"))


def test_a_failure_survives_json() -> None:
    failure = Failure("The disk is full.", "Make room.", ExitCode.DATA)
    assert Failure.from_json(json.loads(json.dumps(failure.to_json()))) == failure
    with pytest.raises(medsft.MedsftError, match=r"The disk is full\.\n    Make room\.") as raised:
        failure.raise_()
    assert raised.value.exit_code == ExitCode.DATA
    assert raised.value.failure == failure


@pytest.mark.parametrize("record", [{}, {"reason": None, "exit_code": 99}, {"exit_code": "6", "remedy": ""}])
def test_what_a_record_lacks_has_a_default(record: dict[str, object]) -> None:
    assert Failure.from_json(record) == Failure("", "", ExitCode.TRAINING)


def test_errors_of_ranks_and_ends_of_nodes_as_version_0_1_0_wrote_them(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.make_folders()
    record = {"rank": 3, "time": 1.5, "reason": "Out of memory.", "remedy": "", "exit_code": 6, "expected": False}
    (run.control / "error_rank_3.json").write_text(json.dumps(record))
    (run.control / "error_rank_4.json").write_text('{"rank": 4')
    assert run.rank_errors() == [RankError(3, 1.5, Failure("Out of memory."), expected=False)]
    (run.control / "end_node_1.json").write_text('{"reason": "x", "remedy": "y", "exit_code": 5}')
    assert run.read_end(1) == Failure("x", "y", ExitCode.LAUNCH)
    assert run.read_end(2) is None


def test_what_is_written_is_read(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.make_folders()
    error = RankError(0, 2.0, Failure("a", "b", ExitCode.DATA), expected=True)
    run.write_rank_error(error)
    run.write_end(1, Failure("", exit_code=ExitCode.DONE))
    assert (run.rank_errors(), run.read_end(1)) == ([error], Failure("", exit_code=ExitCode.DONE))
    run.clear_start()
    assert (run.rank_errors(), run.read_end(1)) == ([], None)
