"""A run on shares of files, validated on a share of the rows: a resume at any iteration trains and validates the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from medsft.core.config.run_config import from_mapping
from medsft.core.planning.selection import open_splits
from medsft.core.run.events import EventReader
from medsft.core.run.rundir import RunDir
from medsft.core.workflow import prepare, resume

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(280)]


def test_a_resume_at_each_iteration_is_exact(tmp_path: Path) -> None:
    config, settings = tiny.project(tmp_path)
    tiny.write_rows(tmp_path / "more.jsonl", 7, seed=2)
    asked = {
        "data": [f"{tmp_path / 'train.jsonl'}:0.3", f"{tmp_path / 'more.jsonl'}:2.5"],
        **{"val": 0.2, "iters": None, "epochs": 1.5, "save_interval": 1, "keep_last": 0},
    }
    plan = prepare(from_mapping(asked, base=config), settings)
    assert plan.val is not None
    parts = [(part.available, part.documents) for part in plan.train.mixture]
    assert sum(available for available, _ in parts) + plan.val.documents == 47
    last = plan.num_iterations
    assert (last, plan.global_batch) == (-(-3 * plan.train.documents // 16), 8)
    straight = tiny.train(plan)
    steps = tiny.series(straight, "step", "iteration", "loss", "grad_norm", "tokens", "supervised_tokens", "epoch")
    evals = tiny.series(straight, "eval", "iteration", "loss")
    assert steps[-1][-1] == pytest.approx(plan.epochs, abs=1e-3)
    run = RunDir(Path(plan.run_dir))
    for iteration in range(last - 1, 0, -1):
        tiny.go_back_to(run, iteration)
        seen = len(EventReader(run.events_path).read())
        again = tiny.train(resume(run))[seen:]
        assert tiny.series(again, "step", "iteration", "loss", "grad_norm", "tokens", "supervised_tokens", "epoch") == [
            step for step in steps if step[0] > iteration
        ]
        assert tiny.series(again, "eval", "iteration", "loss") == [value for value in evals if value[0] > iteration]
    train, val = open_splits(resume(run))
    assert val is not None
    assert not set(train.subset.indices) & set(val.subset.indices)
