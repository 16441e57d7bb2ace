"""Other programs that fine-tune, run in environments of their own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from bench.runs import Job, Outcome, outcome

_HERE = Path(__file__).parent


def trl_python() -> Path | None:
    """Return the Python that has TRL: $BENCH_TRL_PYTHON, or the one of `make bench-peers`. None: there is none."""
    candidates = [os.environ.get("BENCH_TRL_PYTHON"), str(_HERE.parent / ".venv-trl" / "bin" / "python")]
    return next((Path(path) for path in candidates if path and Path(path).exists()), None)


def train_trl(python: Path, job: Job, *, adapter: bool = False) -> Outcome:
    """Train with TRL, with `adapter` a LoRA of PEFT on a frozen model.

    Raises RuntimeError with the end of what it wrote when it fails.
    """
    command = [str(python), str(_HERE / "peer_trl.py"), str(job.base), str(job.rows), "--precision", job.precision]
    command += ["--steps", str(job.steps), "--seq", str(job.seq)]
    command += ["--micro-batch", str(job.micro_batch), "--global-batch", str(job.global_batch)]
    command += ["--adapter"] if adapter else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"TRL ended with {done.returncode}:\n{done.stderr[-2000:]}")
    result = json.loads(done.stdout.strip().splitlines()[-1])
    return outcome(result["steps"], result["memory_bytes"])
