"""Every file of a project, damaged in every way: each command ends right or with a clear error, and in bounded time.

Pairs of a file and a damage are 180, each with four commands. `MEDSFT_DAMAGE=all` has pytest try all of them; otherwise it
tries every seventh pair, with one command, the next for each.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from kept import OLD_PROJECTS
from tiny import series

from medsft.core.run.events import EventReader
from medsft.core.run.rundir import find_runs

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]
PROJECT = OLD_PROJECTS / "0.1.0"
COMMANDS = (
    ("runs", "--plain"),
    ("sft", "--config", "run.toml", "--plain"),
    ("resume", "words", "--plain"),
    ("export", "words", "--to", "model"),
)


def _flip_one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[len(content) // 2] ^= 4
    path.write_bytes(content)


def _in_the_way(path: Path, make: Callable[[Path], None]) -> None:
    path.unlink()
    make(path)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "halved": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "one-bit": _flip_one_bit,
    "directory": lambda path: _in_the_way(path, Path.mkdir),
    # Permissions do not keep root out; a link to itself does, with an error that is not "no such file" either.
    "unreadable": lambda path: _in_the_way(path, lambda gone: gone.symlink_to(gone.name)),
    "removed": Path.unlink,
}


def files() -> list[str]:
    found = (path.relative_to(PROJECT) for path in PROJECT.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if path.name not in ("uninterrupted.jsonl", "train.jsonl", "val.jsonl"))


def cases() -> list[tuple[str, str, tuple[str, ...]]]:
    everything = [(file, damage) for file in files() for damage in DAMAGES]
    if os.environ.get("MEDSFT_DAMAGE") == "all":
        return [(file, damage, command) for file, damage in everything for command in COMMANDS]
    # Seven and the number of damages have no common divisor, so that all damages are tried.
    return [(*pair, COMMANDS[i % len(COMMANDS)]) for i, pair in enumerate(everything[::7])]


@pytest.mark.parametrize(
    ("file", "damage", "command"), cases(), ids=lambda value: value if isinstance(value, str) else value[0]
)
def test_damage_ends_right_or_with_a_clear_error(tmp_path: Path, file: str, damage: str, command: tuple[str, ...]) -> None:
    folder = shutil.copytree(PROJECT, tmp_path / "project")
    for heartbeat in folder.rglob("heartbeat"):
        os.utime(heartbeat, (0, 0))
    DAMAGES[damage](folder / file)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CONFIG_HOME": str(tmp_path / "no-config"), "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, "-m", "medsft", *command], cwd=folder, capture_output=True, text=True, timeout=200, env=environment
    )
    said = done.stdout + done.stderr
    assert "a bug in medsft" not in said, said
    assert "Traceback" not in said, said
    assert done.returncode in (0, 2, 3, 4, 5, 6), said
    if done.returncode:
        assert re.search(r"\w", done.stderr), "an error says nothing"
    elif command[0] in ("sft", "resume"):
        _is_the_run_that_it_was(folder)
    elif command[0] == "export":
        assert (folder / "model" / "model.safetensors").stat().st_size > 20_000


def _is_the_run_that_it_was(folder: Path) -> None:
    """The weights that it ended with are those of the run without damage: its last losses are."""
    expected = dict(series(EventReader(folder / "uninterrupted.jsonl").read(), "step", "iteration", "loss"))
    finished = [run for run in find_runs(folder / "runs") if run.view().outcome == "finished"]
    assert finished, "the command said that it had finished a run"
    for run in finished:
        losses = dict(series(EventReader(run.events_path).read(), "step", "iteration", "loss"))
        assert losses[max(losses)] == pytest.approx(expected[max(losses)], rel=1e-5)
