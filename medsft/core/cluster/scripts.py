"""The commands that start one run on several nodes: a line for each node, or one script for Slurm."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from medsft.core.config.command import command_line
from medsft.core.config.run_config import RunConfig

ADDR_PLACEHOLDER = "ADDRESS_OF_NODE_0"
"""Stands where nobody has said what node 0 is called."""
_SLURM = """\
#!/bin/bash
#SBATCH --job-name=medsft-{name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --output=medsft-{name}-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@300
# Five minutes before its time is over, the job saves a checkpoint and ends. Submitted or queued again, it goes on from there.
# Add what your cluster asks for: --account, --partition, --time{gpus}

MEDSFT_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MEDSFT_ADDR
srun --kill-on-bad-exit=0 bash -c {command}
"""


def node_commands(config: RunConfig, settings: Path | None = None) -> list[str]:
    """Return what to type on each node, in the order of their ranks."""
    config = replace(config, addr=config.addr or ADDR_PLACEHOLDER) if config.nodes > 1 else config
    return [_line(replace(config, rank=rank), settings) for rank in range(config.nodes)]


def slurm_script(config: RunConfig, settings: Path | None = None) -> str:
    """Return an sbatch script that starts the run on all its nodes, each finding its rank and node 0 in Slurm's variables."""
    plain = replace(config, rank=0, addr=None)
    # exec: the signal goes to every process of the job, and a shell in between would die of it before medsft has saved
    command = f'exec {_line(plain, settings)} --rank "$SLURM_NODEID" --addr "$MEDSFT_ADDR" --plain'
    gpus = f", --gpus-per-node={config.nproc_per_node}" if config.nproc_per_node else ", --gpus-per-node"
    return _SLURM.format(name=config.run_name, nodes=config.nodes, gpus=gpus, command=shlex.quote(command))


def _line(config: RunConfig, settings: Path | None) -> str:
    line = command_line(config)
    return f"{line} --settings {shlex.quote(str(settings))}" if settings else line
