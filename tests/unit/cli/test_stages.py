"""Progress as lines: what begins, and for what takes long how far it is."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from medsft.cli import stages
from medsft.core.data.dataset.write import Progress, Stage


def test_a_stage_is_named_when_it_begins_and_how_far_it_is_later(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(stages, "time", SimpleNamespace(monotonic=lambda: now))
    told: list[tuple[float, Stage, int]] = [
        (100, "check", 300),
        (102, "check", 500),
        (106, "check", 512),
        (107, "tokenize", 90),
    ]
    with stages.tokenizing(plain=True) as show:
        for now, stage, done in told:  # noqa: B007 - the clock
            show(Progress(stage=stage, done_bytes=done, total_bytes=1024, documents=10, seconds=5.0))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "checking rows, 1.0 KiB ..."
    assert lines[1].startswith("checking rows 50% of 1.0 KiB, 10 documents, 2/s")
    assert lines[2:] == ["tokenizing, 1.0 KiB ..."]
