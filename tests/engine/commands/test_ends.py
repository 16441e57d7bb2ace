"""How processes that were ranks together end."""

from __future__ import annotations

import subprocess
import sys

import pytest
from kept import ROOT

A_RANK = """
import atexit, os, sys
from medsft.core.engine.commands.entry_point import end_rank
atexit.register(os.abort)
sys.stdout.write("said")
end_rank(3)
"""


def test_a_rank_ends_with_its_code_whatever_libraries_would_do_at_the_end():
    done = subprocess.run([sys.executable, "-c", A_RANK], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "said")


RANKS = [path for path in (ROOT / "medsft/core/engine/commands").glob("*.py") if "open_mesh(" in path.read_text()]


@pytest.mark.parametrize("path", RANKS, ids=lambda path: path.stem)
def test_who_meets_others_ends_as_a_rank(path):
    """One that did not was aborted in one of some hundred runs: threads of gloo outlive Python."""
    _, found, ends = path.read_text().partition('if __name__ == "__main__":')
    assert found
    assert ends.strip().startswith("end_rank(")


def test_there_are_ranks():
    assert {path.stem for path in RANKS} >= {"worker", "score_sharded"}
