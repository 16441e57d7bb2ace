"""The check of a machine with a GPU, in the sizes of tests and on a CPU: every part of it runs and is right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.gpu.check import PARTS
from bench.gpu.part import DONE

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
TOGETHER = (("machine", "attention", "loss_and_norms"), ("adapters", "perf"), ("peers", "several_gpus"), ("runs",))


def test_every_part_is_run() -> None:
    assert sorted(name for names in TOGETHER for name in names) == sorted(part.name for part in PARTS)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("names", TOGETHER, ids=lambda names: names[0])
def test_parts_are_right(names: tuple[str, ...], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "gpu", "--tiny", "--only", *names, "--budget", "570", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert {name: part["status"] for name, part in results["parts"].items()} == dict.fromkeys(names, DONE)
    checked = {name for name, part in results["parts"].items() if part["checks"]}
    assert checked == set(names) - {"perf", "peers"}  # which measure alone
    if "perf" in names:
        assert len(results["parts"]["perf"]["figures"]["cases"]) >= 6, results["parts"]["perf"]["notes"]
    if "peers" in names:
        assert len(results["parts"]["peers"]["figures"]["cases"]) == 2, results["parts"]["peers"]["notes"]
    assert (tmp_path / "gpu.md").read_text() in done.stdout
