from __future__ import annotations

import pytest

from medsft.core.run.events import Event
from medsft.core.text.events import event_line

STEP = {"iteration": 12, "total": 1200, "loss": 1.25, "lr": 2e-5, "grad_norm": 0.5, "tokens_per_second": 4321.0}


@pytest.mark.parametrize(
    ("kind", "data", "text"),
    [
        (
            "run_started",
            {"iteration": 0, "total": 1200, "world_size": 2, "host": "a"},
            "started: 1,200 iterations, 2 processes on a",
        ),
        (
            "run_started",
            {"iteration": 800, "total": 1200, "resumed": True},
            "resumed after iteration 800: 1,200 iterations, 1 process",
        ),
        ("phase", {"name": "saving"}, "saving ..."),
        ("phase", {"name": "evaluating"}, "validating ..."),
        (
            "step",
            STEP | {"eta_seconds": 4500.0},
            "12/1,200  loss 1.2500  lr 2.00e-05  grad norm 0.500  4,321 tokens/s  1 h 15 min left",
        ),
        ("step", STEP | {"loss": None}, "12/1,200  loss not finite  lr 2.00e-05  grad norm 0.500  4,321 tokens/s"),
        ("eval", {"iteration": 100, "loss": 1.5, "accuracy": 0.5}, "validation after 100: loss 1.5000, accuracy 0.5000"),
        (
            "eval_task",
            {"iteration": 0, "task": "pubmedqa", "accuracy": 0.61, "interval": [0.541, 0.675], "questions": 200},
            "pubmedqa before the first iteration: 61.0 % (54.1 to 67.5) of 200 questions",
        ),
        ("checkpoint", {"iteration": 800, "bytes": 3 << 30, "seconds": 4.2}, "checkpoint 800 saved, 3.0 GiB in 4 s"),
        ("warning", {"message": "slow"}, "WARNING slow"),
        ("failed", {"reason": "Out of memory.", "remedy": "Raise --tp."}, "FAILED Out of memory. Raise --tp."),
        ("finished", {"iteration": 1200, "export": "out"}, "finished after 1,200 iterations, model in out"),
        ("stopped", {"iteration": 900}, "stopped on request after iteration 900"),
    ],
)
def test_an_event_is_a_line(kind, data, text):
    line = event_line(Event(0, 1_764_000_000.0, kind, data))
    assert line is not None
    assert line[8:] == f"  {text}"
    assert line[2] == line[5] == ":"


def test_unknown_kinds_say_nothing():
    assert event_line(Event(0, 1.0, "of the future", {})) is None
