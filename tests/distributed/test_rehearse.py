"""A rehearsal proves a resume bit for bit, another layout to 1e-4, keeps its forecast, and leaves nothing else behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny

from medsft.core import rehearsal as rehearsal
from medsft.core.data.dataset.copy_documents import copy_documents
from medsft.core.data.dataset.dataset import open_tokenized
from medsft.core.planning.order import SampleOrder
from medsft.core.planning.planner import make_plan
from medsft.core.planning.selection import open_splits
from medsft.core.run.rundir import RunDir
from medsft.core.workflow import tokenize_sets
from medsft.errors import ConfigError

pytestmark = pytest.mark.distributed


def test_a_rehearsal_resumes_exactly_and_forecasts(tmp_path: Path) -> None:
    config, settings = tiny.project(tmp_path)
    tokenize_sets(config, settings)
    told: list[str] = []
    result = rehearsal.rehearse(config, settings, at=[{"pp": 2}], on_status=told.append)
    assert [(resumed.layout, resumed.allowed) for resumed in result.resumes] == [
        ("pp 1 x dp 1 x tp 1", 0.0),
        ("pp 2 x dp 1 x tp 1", 1e-4),
    ]
    assert result.problems == []
    assert len(told) == 3
    assert result.tokens_per_second > 0
    assert result.memory_bytes > 0
    assert result.forecast_seconds > result.start_seconds
    plan = make_plan(config, settings)
    assert rehearsal.read_rehearsal(plan) == result
    assert rehearsal.read_rehearsal(make_plan(replace(config, lr=1e-3), settings)) is None
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [RunDir(Path(plan.run_dir)).rehearsal_path.name]


def test_it_meets_the_heaviest_batch_first(tmp_path: Path) -> None:
    config, settings = tiny.project(tmp_path)
    tokenize_sets(config, settings)
    plan = make_plan(config, settings)
    data = open_tokenized(Path(plan.train.folder))
    train = open_splits(plan)[0]
    positions = rehearsal._chosen_positions(plan, train)
    chosen = train.subset.indices[positions]
    real = SampleOrder(data.num_documents, config.global_batch, config.seed)
    heaviest = max(int(data.lengths[real.batch(i)].sum()) for i in range(plan.num_iterations))
    small = SampleOrder(len(chosen), config.global_batch, config.seed)
    assert [int(data.lengths[chosen[small.batch(i)]].sum()) for i in (0, 1)] == [heaviest, heaviest]
    copied = copy_documents(data, train.subset.at(positions), tmp_path / "copy")
    for number, document in enumerate(chosen):
        np.testing.assert_array_equal(copied.tokens(number), data.tokens(int(document)))
        np.testing.assert_array_equal(copied.roles(number), data.roles(int(document)))
    np.testing.assert_array_equal(copied.answers.labels(copied.lengths), data.answers.labels(data.lengths)[chosen])


def test_many_nodes_are_refused(tmp_path: Path) -> None:
    config, settings = tiny.project(tmp_path)
    with pytest.raises(ConfigError, match="one node"):
        rehearsal.rehearse(replace(config, nodes=2, addr="a"), settings)
