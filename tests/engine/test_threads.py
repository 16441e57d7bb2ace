"""The threads of a rank take the settings that training processes are started with."""

from __future__ import annotations

import subprocess
import sys

import pytest

from medsft.core.run.launch import engine_environment


@pytest.mark.parametrize("own", [None, "1000"])
def test_waiting_threads_spin_for_as_long_as_they_are_told(monkeypatch, own):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    if own:
        monkeypatch.setenv("GOMP_SPINCOUNT", own)
    environment = engine_environment(1) | {"OMP_DISPLAY_ENV": "verbose"}
    done = subprocess.run([sys.executable, "-c", "import torch"], env=environment, capture_output=True, text=True, check=True)
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("this torch's threads are not libgomp's")
    assert f"GOMP_SPINCOUNT = '{own or 100000}'" in done.stderr
