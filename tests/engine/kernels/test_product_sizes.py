"""Sizes of products that never come again leave no memory behind."""

from __future__ import annotations

import subprocess
import sys

from medsft.core.run.launch import engine_environment

MULTIPLY_ALWAYS_OTHER_SIZES = """
import resource
import torch

def multiply(sizes):
    for tokens in sizes:
        x, weight = torch.ones(tokens, 64, dtype=torch.bfloat16), torch.ones(96, 64, dtype=torch.bfloat16)
        out = x @ weight.T
        out @ weight
        out.T @ x

def peak_kib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

multiply(range(64, 164))
before = peak_kib()
multiply(range(164, 464))
print((peak_kib() - before) / 1024)
"""


def test_other_sizes_in_each_micro_batch_take_no_more_memory():
    environment = engine_environment(1) | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MULTIPLY_ALWAYS_OTHER_SIZES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    assert float(done.stdout) < 50
