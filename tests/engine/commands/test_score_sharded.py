"""A model that is divided over processes scores as a whole one does."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from asked import pubmedqa
from typer.testing import CliRunner

from medsft.cli.app import app
from medsft.core.evaluation.model import ModelSource, find_model
from medsft.core.evaluation.requests import Generate, Score, Scored, answer
from medsft.core.planning.layout import Layout
from medsft.errors import ConfigError

REQUESTS = [
    Score(id=str(n), prefix=tuple(range(1, 4 + n)), continuations=((5,), (6, 7, 8), (9, 10 + n % 7)))
    for n in range(70)  # more than are written at once
]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    folder = tiny.write_model(tmp_path_factory.mktemp("models") / "tiny", tie_word_embeddings=request.param)
    return find_model(folder, template="meditron")


@pytest.mark.parametrize("layout", [Layout(tp=2), Layout(pp=2), Layout(tp=2, pp=2)], ids=str)
def test_the_scores_are_those_of_one_process(model: ModelSource, layout: Layout) -> None:
    whole, divided = (
        {one.id: one for one in answer(model, REQUESTS, precision="fp32", layout=one)} for one in (Layout(), layout)
    )
    assert divided.keys() == whole.keys()
    for one in whole.values():
        other = divided[one.id]
        assert isinstance(one, Scored)
        assert isinstance(other, Scored)
        assert other.log_likelihoods == pytest.approx(one.log_likelihoods, abs=1e-5)
        assert other.num_tokens == one.num_tokens
        assert other.greedy == one.greedy


def test_what_a_layout_cannot_do_is_said(model: ModelSource, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one process writes an answer"):
        list(answer(model, [Generate(id="a", prompt=(1,), max_new_tokens=2)], precision="fp32", layout=Layout(tp=2)))
    pubmedqa(tmp_path, 3)
    asked = [str(model.weights), "--task", "pubmedqa", "--data", str(tmp_path / "pubmedqa.jsonl"), "--precision", "fp32"]
    runner = CliRunner(env={"TERM": "dumb"})
    done = runner.invoke(app, ["eval", *asked, "--tp", "4"])
    assert done.exit_code == 2, done.output
    assert "4 does not divide" in done.output
