from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from medsft.core.cluster.scripts import ADDR_PLACEHOLDER, node_commands, slurm_script
from medsft.core.config.run_config import RunConfig

CONFIG = RunConfig(run_name="r", data=(Path("my data.jsonl"),), nodes=3, addr="n0", tp=2)


def test_one_line_for_each_node_that_differs_in_the_rank_only():
    lines = node_commands(CONFIG, Path("my settings.toml"))
    start, end = "medsft sft --run_name r --data 'my data.jsonl' --tp 2 --nodes 3", "--addr n0 --settings 'my settings.toml'"
    assert lines == [f"{start} {end}", f"{start} --rank 1 {end}", f"{start} --rank 2 {end}"]


@pytest.mark.parametrize(("nodes", "there"), [(1, False), (2, True)])
def test_an_address_nobody_gave(nodes, there):
    lines = node_commands(RunConfig(run_name="r", nodes=nodes))
    assert len(lines) == nodes
    assert all((f"--addr {ADDR_PLACEHOLDER}" in line) is there for line in lines)


def test_the_slurm_script_types_the_line_of_each_node(tmp_path):
    """Run it with a `scontrol`, an `srun` and a `medsft` that print what they are given."""
    programs = {
        "scontrol": 'echo "first-of-$3"; echo second',
        "srun": 'while [ "$1" != bash ]; do shift; done; for SLURM_NODEID in 0 1 2; do export SLURM_NODEID; "$@"; done',
        "medsft": 'for word in "$@"; do printf "%s\\n" "$word"; done; echo .',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_NODELIST": "list"}
    done = subprocess.run(["bash"], input=slurm_script(CONFIG), env=env, capture_output=True, text=True, check=True)
    words = [part.split("\n") for part in done.stdout.removesuffix("\n.\n").split("\n.\n")]
    plain = shlex.split(node_commands(CONFIG)[0])[1:]
    without_addr = plain[: plain.index("--addr")]
    assert words == [[*without_addr, "--rank", str(rank), "--addr", "first-of-list", "--plain"] for rank in range(3)]


def test_slurm_lets_the_run_save_and_takes_it_up_again():
    script = slurm_script(CONFIG)
    for line in ("--nodes=3", "--ntasks-per-node=1", "--signal=TERM@300", "--requeue", "--open-mode=append"):
        assert f"#SBATCH {line}\n" in script
