"""torchrun of a torch that kills ranks 30 seconds after a SIGTERM, and of one that is told how long to wait."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from medsft.core.engine.commands import torchrun
from medsft.core.run.launch import STOP_SECONDS, engine_environment


class Agent:
    """What of torch's agent takes part: the processes that it closes, and how it was told to."""

    def __init__(self) -> None:
        self._pcontext = self
        self.closed: list[tuple[int, int]] = []
        self.ended: list[tuple[tuple[int, ...], dict[str, int]]] = []

    def close(self, number: int, timeout: int) -> None:
        self.closed.append((number, timeout))


@pytest.mark.parametrize(
    ("signals", "options", "closed"),
    [
        ((signal.SIGTERM,), {}, [(signal.SIGTERM, STOP_SECONDS)]),  # torch 2.11: the signal alone
        ((signal.SIGTERM,), {"timeout": 600}, []),  # torch 2.12 waits by itself
        ((), {}, []),  # ranks that failed, or that are started again
    ],
)
def test_ranks_have_time_to_save(signals, options, closed, monkeypatch):
    monkeypatch.setattr(torchrun, "_shutdown", lambda agent, *signals, **options: agent.ended.append((signals, options)))
    agent: Any = Agent()
    torchrun._shutdown_with_patience(agent, *signals, **options)
    assert agent.closed == closed
    assert agent.ended == [(signals, options)]


def test_torch_is_told_by_a_variable_how_long():
    assert engine_environment(1)["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == str(STOP_SECONDS)
