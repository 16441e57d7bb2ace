"""Losses of an adapter beside those of PEFT, in fp32: the same base model, A, B, documents, learning rates and AdamW."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import medsft
from bench import documents, peers
from bench.runs import Job, plan_of, train, unpack_base
from bench.table import print_table, say
from medsft.core.data.tokenizers.template import Role
from medsft.core.engine.formats.adapters import StoredAdapter
from medsft.core.engine.formats.peft import fill_peft
from medsft.core.engine.nn.adapters import initial_factor
from medsft.core.engine.train.base_weights import base_source
from medsft.core.planning.schedule import learning_rate
from medsft.core.planning.selection import open_splits

_ROWS, _ITERATIONS, _BATCH = 400, 20, 2


def measure(work: Path, *, rows: Path | None) -> dict[str, Any]:
    """Print and return the losses and gradient norms of both, iteration by iteration; nothing where PEFT is not installed."""
    python = peers.trl_python()
    if python is None:
        say("PEFT is not installed: `make bench-peers` builds its environment.")
        return {}
    job = Job(
        base=unpack_base(work / "base"),
        rows=rows or documents.write(work / "pubmedqa_like.jsonl", _ROWS),
        precision="fp32",
        steps=_ITERATIONS,
        micro_batch=_BATCH,
        global_batch=_BATCH,
    )
    plan = plan_of(job, work, adapter="lora", nproc_per_node=1)
    with tempfile.TemporaryDirectory(dir=work) as name:
        folder = Path(name)
        write_start(plan, folder)
        tasks = {"adamw": adamw(plan), "clip_grad": plan.config.clip_grad, "iterations": list(iterations(plan))}
        (folder / "work.json").write_text(json.dumps(tasks), encoding="utf-8")
        say("medsft trains")
        steps = [event.data for event in train(plan) if event.kind == "step"]
        say("PEFT trains")
        found = by_peft(python, Path(plan.base.path), folder)
    ours = {"losses": [step["loss"] for step in steps], "norms": [step["grad_norm"] for step in steps]}
    rows_of_table = []
    for name in ("losses", "norms"):
        apart = [abs(one - other) for one, other in zip(ours[name], found[name], strict=True)]
        rows_of_table.append(
            {
                "of 20 iterations": {"losses": "loss", "norms": "norm of the gradient"}[name],
                "medsft, first": f"{ours[name][0]:.6f}",
                "PEFT, first": f"{found[name][0]:.6f}",
                "difference": f"{apart[0]:.1e}",
                "medsft, last": f"{ours[name][-1]:.6f}",
                "PEFT, last": f"{found[name][-1]:.6f}",
                "largest difference": f"{max(apart):.1e}",
            }
        )
    print_table(f"Beside PEFT {found['version']}, {found['trained']:,} parameters", rows_of_table)
    return {"medsft": ours, "peft": found}


def write_start(plan: medsft.RunPlan, folder: Path) -> None:
    """Write the A and B that the run begins with as PEFT reads them. Raises RuntimeError where rows are trained, too."""
    lora = plan.config.lora
    assert lora is not None
    if base_source(plan)[0].made_rows:
        raise RuntimeError("rows of tokens are trained, too; these losses are compared where A and B alone are")
    shapes = dict(lora.shapes(plan.base.model))
    adapter = StoredAdapter(lora=lora, rows={}, read=lambda name: initial_factor(name, shapes[name], plan.config.seed))
    fill_peft(folder, adapter, plan.base.model, base=plan.base.path)


def adamw(plan: medsft.RunPlan) -> dict[str, Any]:
    """Return the options of torch's AdamW."""
    config = plan.config
    betas = [config.adam_beta1, config.adam_beta2]
    return {"lr": config.lr, "betas": betas, "eps": config.adam_eps, "weight_decay": config.weight_decay}


def iterations(plan: medsft.RunPlan) -> Iterator[dict[str, Any]]:
    """Yield the learning rate and the documents of each iteration: tokens, and which labels are an answer's."""
    split, _ = open_splits(plan)
    for iteration in range(plan.num_iterations):
        parts = []
        for number in split.order.batch(iteration):
            document, start = int(split.subset.indices[number]), int(split.subset.starts[number])
            part = slice(start, start + int(split.subset.lengths[number]))
            answer = split.data.roles(document)[part] == Role.ANSWER
            parts.append({"tokens": split.data.tokens(document)[part].tolist(), "answer": answer[1:].astype(int).tolist()})
        yield {"lr": learning_rate(plan.config, iteration + 1, plan.num_iterations), "documents": parts}


def by_peft(python: Path, base: Path, folder: Path) -> dict[str, Any]:
    """Return what `peer_peft.py` prints. Raises RuntimeError with the end of what it wrote when it fails."""
    script = Path(__file__).with_name("peer_peft.py")
    done = subprocess.run(
        [str(python), str(script), str(base), str(folder), str(folder / "work.json")],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"PEFT ended with {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
